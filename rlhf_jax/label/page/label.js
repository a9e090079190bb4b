// The page: enters a labeler, shows item after item, and sends the judgments. What the server confirms is on its disk.

import { Ranking } from "./ranking.js";
import { element, show } from "./text.js";

const ALIVE = 15000; // ms between two signs of life
const $ = (id) => document.getElementById(id);
const kept = window.sessionStorage;
let setup = null; // what is asked, and who is at work
let item = null;
let ranking = null;
let busy = false;

history.replaceState(null, "", "/"); // the key is in the cookie now

// --- Requests -------------------------------------------------------------------------------------

class Refusal extends Error {
  constructor(answer) {
    super(answer.error);
    this.code = answer.code;
  }
}

async function ask(action, body) {
  let response;
  try {
    response = await fetch(`/api/${action}`, {
      method: body ? "POST" : "GET",
      headers: body ? { "content-type": "application/json" } : {},
      body: body ? JSON.stringify(body) : undefined,
    });
  } catch {
    throw new Error("The program does not answer. Nothing is lost: start it again with the same command, and save once more.");
  }
  const answer = await response.json().catch(() => ({ error: `The program failed (${response.status}).`, code: "" }));
  if (!response.ok) throw new Refusal(answer);
  return answer;
}

// Runs an action of the page; what goes wrong is one sentence on it.
async function run(action) {
  if (busy) return;
  work(true);
  say("");
  try {
    await action();
  } catch (error) {
    if (error.code === "session" && setup) await again(error);
    else if (error.code === "item") {
      await load().catch(() => {});
      say(error.message);
    } else say(error.message);
  } finally {
    work(false);
  }
}

function work(begun) {
  busy = begun;
  document.body.setAttribute("aria-busy", begun);
}

// The program was started again, or somebody else has taken the name.
async function again(error) {
  try {
    await enter(setup.name, true);
    say("The program was started again. Please save once more.");
  } catch (refused) {
    say(refused.message || error.message);
    leaveWork();
  }
}

const asked = (more = {}) => ({ session: setup.session, ...more });

async function enter(name, stay = false) {
  const session = kept.getItem("name") === name ? kept.getItem("session") : "";
  setup = await ask("enter", { name, session: session ?? "" });
  kept.setItem("name", setup.name);
  kept.setItem("session", setup.session);
  document.body.dataset.task = setup.task;
  $("save").querySelector("kbd").textContent = setup.task === "rankings" ? "Enter" : "Ctrl Enter";
  if (stay && item) {
    const answer = await ask("next", asked());
    if (answer.item?.key === item.key) return;
    await place(answer);
  } else {
    ranking = new Ranking($("cards"), $("lanes"), setup, update);
    await load();
  }
}

async function load() {
  await place(await ask("next", asked()));
}

async function save() {
  const missing = left();
  if (!item || missing) {
    if (item) say(`Still to do: ${missing}.`);
    return;
  }
  const answers = setup.task === "rankings" ? ranking.answers() : { completion: $("demonstration").value };
  await place(await ask("judge", asked({ key: item.key, answers })));
}

async function undo() {
  await place(await ask("undo", asked()));
}

// --- What the page shows --------------------------------------------------------------------------

function say(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

function only(name) {
  for (const id of ["enter", "work", "end"]) $(id).hidden = id !== name;
  $("foot").hidden = name !== "work";
  for (const id of ["undo", "summarize", "progress"]) $(id).hidden = name === "enter";
  $("who").textContent = name === "enter" ? "" : setup.name;
}

function leaveWork() {
  item = null;
  only("enter");
  $("name").focus();
}

async function place(answer) {
  const { done, left } = answer.progress;
  $("bar").max = Math.max(1, done + left);
  $("bar").value = done;
  $("count").textContent = `${done} judged, ${left} to go`;
  $("undo").disabled = done === 0;
  item = answer.item;
  if (!item) return summarize("Thank you. There is nothing more to judge.", "Look again");
  only("work");
  const prompt = $("prompt");
  prompt.replaceChildren(...item.turns.map(turn));
  prompt.scrollTop = 0;
  const ranks = setup.task === "rankings";
  $("lanes").hidden = $("cards").hidden = !ranks;
  $("demonstration").hidden = ranks;
  if (ranks) ranking.start(item.completions, item.cut, item.filled);
  else {
    $("demonstration").value = item.filled?.completion ?? "";
    $("demonstration").focus();
    update();
  }
}

function turn({ role, text }) {
  const made = element("div", role ? `turn ${role}` : "turn");
  if (role) made.append(element("span", "role", role));
  const body = element("div", "text");
  body.dir = "auto";
  show(body, text);
  made.append(body);
  return made;
}

function left() {
  if (!item) return "";
  if (setup.task === "rankings") return ranking.missing();
  return $("demonstration").value.trim() ? "" : "write the answer";
}

function update() {
  const missing = left();
  $("missing").textContent = missing ? `To do: ${missing}` : "Complete";
  $("missing").classList.toggle("complete", !missing);
  $("save").disabled = Boolean(missing);
}

async function summarize(title, button) {
  const found = await ask("summary");
  only("end");
  $("end-title").textContent = title;
  $("again").textContent = button;
  $("end-text").replaceChildren(...summary(found));
}

const percent = (share) => `${Math.round(100 * share)} %`;
const interval = (found) =>
  found.low === null || found.high === null
    ? percent(found.value)
    : `${percent(found.value)} (95 % interval ${percent(found.low)} to ${percent(found.high)})`;

function summary(found) {
  const parts = [];
  let text = `${found.judgments} judgments of ${found.items} items are in the file`;
  if (found.ties !== null) text += `; ${percent(found.ties)} of their pairs are ties`;
  parts.push(element("p", "", `${text}.`));
  if (found.agreement) {
    const { comparisons, prompts } = found.agreement;
    parts.push(
      element("p", "", `Two labelers agree on ${interval(found.agreement)} of the pairs that both rank: ${comparisons} comparisons of ${prompts} items.`),
    );
  } else if (found.ties !== null) {
    parts.push(element("p", "", "No two labelers have ranked the same completions yet, so their agreement is not known."));
  }
  const table = element("table");
  const row = (tag, cells) => {
    const made = element("tr");
    for (const cell of cells) made.append(element(tag, "", cell));
    return made;
  };
  const known = found.labelers.some((labeler) => labeler.gold);
  table.append(row("th", ["labeler", "judgments", "median time", ...(known ? ["agreement with known rankings", "75 % rule"] : [])]));
  for (const { name, judgments, seconds, gold } of found.labelers) {
    const cells = [name, String(judgments), seconds === null ? "–" : `${Math.round(seconds)} s`];
    if (known) cells.push(gold ? `${interval(gold)}, ${gold.items} items` : "–", gold ? verdict(gold) : "–");
    table.append(row("td", cells));
  }
  const scrolled = element("div", "scrolled");
  scrolled.append(table);
  parts.push(scrolled);
  return parts;
}

const verdict = (gold) => (gold.certain ? gold.verdict : `${gold.verdict}, but the interval holds both sides`);

// --- Events ---------------------------------------------------------------------------------------

$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  run(() => enter($("name").value));
});
$("save").addEventListener("click", () => run(save));
$("undo").addEventListener("click", () => run(undo));
$("again").addEventListener("click", () => run(load));
$("summarize").addEventListener("click", () => run(() => summarize("So far", "Back to work")));
$("help-button").addEventListener("click", () => $("help").showModal());
$("help-close").addEventListener("click", () => $("help").close());
$("demonstration").addEventListener("input", update);
// After a click the keys belong to the page again, and Enter saves.
document.addEventListener("click", (event) => {
  if (event.detail > 0 && event.target.closest?.("button, summary, label")) document.activeElement?.blur();
});

document.addEventListener("keydown", (event) => {
  if ($("help").open || $("work").hidden || event.altKey || event.metaKey) return;
  const writing = event.target.matches("textarea, input:not([type=checkbox])");
  if (event.key === "Enter" && (event.ctrlKey || !(writing || event.target.matches("button, summary, input")))) {
    event.preventDefault();
    run(save);
  } else if (!writing && !event.ctrlKey && !busy && item) key(event);
});

function key(event) {
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code)?.[1];
  const number = digit === undefined ? null : Number(digit);
  const ranks = setup.task === "rankings";
  const typed = /^[a-z]$/i.test(event.key) ? event.key : /^Key([A-Z])$/.exec(event.code)?.[1]; // also in Hangul mode
  const letter = (typed ?? "").toUpperCase();
  const place = letter ? letter.charCodeAt(0) - 65 : -1;
  if (event.key === "?") $("help").showModal();
  else if (letter === "U") run(undo);
  else if (!ranks) return;
  else if (number !== null && event.shiftKey) {
    if (number >= 1 && number <= 7 && ranking.asks("ratings")) ranking.rate(ranking.selected, number);
  } else if (number === 0) ranking.rank(ranking.selected, null);
  else if (number !== null) {
    if (number <= ranking.count) ranking.rankAndGoOn(number);
  } else if (event.key === "ArrowLeft") ranking.select(ranking.selected - 1);
  else if (event.key === "ArrowRight") ranking.select(ranking.selected + 1);
  else if (event.key === "ArrowUp") ranking.move(-1);
  else if (event.key === "ArrowDown") ranking.move(1);
  else if (letter === "M") ranking.toggleMarks();
  else if (place >= 0 && place < ranking.count ) ranking.select(place);
  else return;
  event.preventDefault();
}

setInterval(() => {
  if (setup && kept.getItem("session") === setup.session) ask("alive", asked()).catch(() => {});
}, ALIVE);
window.addEventListener("pagehide", () => {
  if (setup) navigator.sendBeacon("/api/leave", new Blob([JSON.stringify(asked())], { type: "application/json" }));
});

run(async () => {
  only("enter");
  const start = await ask("setup");
  const name = start.labeler || kept.getItem("name");
  $("name").value = name ?? "";
  if (name) await enter(name);
  else $("name").focus();
});
