// The ranking of the completions on the page: a rank, a rating and marks for each, by buttons, keys and dragging.

import { element, show } from "./text.js";

export const letterOf = (place) => String.fromCharCode(65 + place);

export class Ranking {
  // cards, lanes: the elements to fill. changed: called after every change.
  constructor(cards, lanes, setup, changed) {
    Object.assign(this, { cards, lanes, setup, changed });
    this.open = null; // whether the marks are open, once the labeler has said so
  }

  start(texts, cut, filled) {
    const count = texts.length;
    this.count = count;
    this.ranks = filled?.ranks ?? Array(count).fill(null);
    this.ratings = filled?.ratings ?? Array(count).fill(null);
    this.flags = (filled?.flags ?? Array(count).fill([])).map((names) => new Set(names));
    this.isOpen = this.open ?? (window.innerHeight > 640 && count <= 4);
    this.cards.replaceChildren(...texts.map((text, place) => this.card(text, cut[place], place)));
    this.cards.dataset.count = count;
    this.cards.scrollTop = 0;
    this.select(0);
  }

  asks(name) {
    return this.setup.asked.includes(name);
  }

  answers() {
    const answers = { ranks: this.ranks };
    if (this.asks("ratings")) answers.ratings = this.ratings;
    if (this.asks("flags")) answers.flags = this.flags.map((names) => [...names]);
    return answers;
  }

  // Says what is missing, or "".
  missing() {
    const todo = (name, values) => {
      const left = values.flatMap((value, place) => (value === null ? [letterOf(place)] : []));
      return left.length ? [`${name} ${left.length === this.count ? "all" : left.join(", ")}`] : [];
    };
    return [...todo("rank", this.ranks), ...(this.asks("ratings") ? todo("rate", this.ratings) : [])].join(" · ");
  }

  select(place) {
    this.selected = (place + this.count) % this.count;
    this.update();
    this.cards.children[this.selected].scrollIntoView({ block: "nearest" });
  }

  rank(place, rank) {
    this.ranks[place] = rank;
    this.selected = place;
    this.update();
  }

  // Gives the selected completion a rank and selects the next one that has none.
  rankAndGoOn(rank) {
    this.rank(this.selected, rank);
    for (let step = 1; step < this.count; step += 1) {
      const next = (this.selected + step) % this.count;
      if (this.ranks[next] === null) return this.select(next);
    }
  }

  move(step) {
    const now = this.ranks[this.selected];
    this.rank(this.selected, now === null ? (step < 0 ? 1 : this.count) : Math.min(this.count, Math.max(1, now + step)));
  }

  rate(place, rating) {
    this.ratings[place] = rating;
    this.selected = place;
    this.update();
  }

  toggleMarks() {
    this.open = this.isOpen = !this.isOpen;
    for (const marks of this.cards.querySelectorAll("details")) marks.open = this.isOpen;
  }

  update() {
    [...this.cards.children].forEach((card, place) => {
      card.classList.toggle("selected", place === this.selected);
      card.classList.toggle("ranked", this.ranks[place] !== null);
      for (const button of card.querySelectorAll("button[data-rank]")) {
        button.setAttribute("aria-pressed", Number(button.dataset.rank) === this.ranks[place]);
      }
      for (const button of card.querySelectorAll("button[data-rating]")) {
        button.setAttribute("aria-pressed", Number(button.dataset.rating) === this.ratings[place]);
      }
      const marks = card.querySelector("summary");
      if (marks) marks.textContent = this.flags[place].size ? `Marks (${this.flags[place].size})` : "Marks";
    });
    this.fillLanes();
    this.changed();
  }

  card(text, isCut, place) {
    const card = element("section", "card");
    card.dataset.place = place;
    card.setAttribute("aria-label", `completion ${letterOf(place)}`);
    card.addEventListener("pointerdown", () => {
      if (this.selected !== place) {
        this.selected = place;
        this.update();
      }
    });
    const head = element("div", "head");
    head.append(this.letter(place), this.buttons("rank", "Rank", this.count, (rank) => this.rank(place, rank)));
    const body = element("div", "text");
    body.dir = "auto";
    body.tabIndex = 0;
    show(body, text);
    if (isCut) body.append(element("span", "cut", " … (stopped here: it had reached its largest length)"));
    card.append(head, body);
    if (this.asks("ratings")) {
      const row = this.buttons("rating", "Quality", 7, (rating) => this.rate(place, rating));
      row.querySelector("button").title = "1: worst";
      row.lastElementChild.title = "7: best";
      card.append(row);
    }
    if (this.asks("flags")) card.append(this.marks(place));
    return card;
  }

  buttons(kind, title, count, chosen) {
    const row = element("div", `choice ${kind}`);
    row.setAttribute("role", "group");
    row.setAttribute("aria-label", title);
    row.append(element("span", "title", title));
    for (let value = 1; value <= count; value += 1) {
      const button = element("button", "", String(value));
      button.type = "button";
      button.dataset[kind] = value;
      button.addEventListener("click", () => chosen(value));
      row.append(button);
    }
    return row;
  }

  marks(place) {
    const details = element("details");
    details.open = this.isOpen;
    details.append(element("summary", "", "Marks"));
    const list = element("div", "marks");
    for (const [name, title] of this.setup.flags) {
      const label = element("label");
      const box = element("input");
      box.type = "checkbox";
      box.name = name;
      box.checked = this.flags[place].has(name);
      box.addEventListener("change", () => {
        if (box.checked) this.flags[place].add(name);
        else this.flags[place].delete(name);
        this.update();
      });
      label.append(box, element("span", "", title));
      list.append(label);
    }
    details.append(list);
    return details;
  }

  // The letter of a completion, which can be dragged into a lane.
  letter(place) {
    const letter = element("span", "letter", letterOf(place));
    letter.dataset.place = place;
    letter.title = "Drag it into a column below";
    letter.addEventListener("pointerdown", (event) => this.drag(event, place));
    return letter;
  }

  fillLanes() {
    const lane = (rank, title) => {
      const made = element("div", "lane");
      made.dataset.rank = rank;
      made.append(element("span", "title", title));
      const held = element("div", "held");
      this.ranks.forEach((value, place) => {
        if ((value ?? 0) === rank) held.append(this.letter(place));
      });
      made.append(held);
      for (const letter of held.children) letter.classList.toggle("selected", Number(letter.dataset.place) === this.selected);
      return made;
    };
    const title = (rank) => (rank === 1 ? "1 best" : rank === this.count ? `${rank} worst` : String(rank));
    const ranks = Array.from({ length: this.count }, (_, n) => n + 1);
    this.lanes.replaceChildren(lane(0, "no rank yet"), ...ranks.map((rank) => lane(rank, title(rank))));
  }

  drag(event, place) {
    if (event.button !== 0) return;
    event.preventDefault();
    event.stopPropagation();
    this.selected = place;
    const ghost = element("span", "letter ghost", letterOf(place));
    document.body.append(ghost);
    const laneAt = ({ clientX, clientY }) => document.elementFromPoint(clientX, clientY)?.closest(".lane");
    const follow = (moved) => {
      ghost.style.left = `${moved.clientX}px`;
      ghost.style.top = `${moved.clientY}px`;
      const over = laneAt(moved);
      for (const lane of this.lanes.children) lane.classList.toggle("over", lane === over);
    };
    const listening = new AbortController();
    const end = (dropped) => {
      listening.abort();
      ghost.remove();
      const lane = dropped.type === "pointerup" ? laneAt(dropped) : null;
      if (lane) this.rank(place, Number(lane.dataset.rank) || null);
      else this.update();
    };
    follow(event);
    const options = { signal: listening.signal };
    window.addEventListener("pointermove", follow, options);
    window.addEventListener("pointerup", end, options);
    window.addEventListener("pointercancel", end, options);
  }
}
