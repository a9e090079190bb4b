// Shows text of models and people as text: what is invisible or turns the writing around is made visible.

const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000d\u000e-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\ud800-\udfff]/;
const PAIR = /^[\ud800-\udbff][\udc00-\udfff]/;

// Returns a new element with this text in it, and nothing of it as markup.
export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== "") made.append(text);
  return made;
}

// Puts a text into an element; control characters stand in it as U+001B.
export function show(parent, text) {
  text = text.replaceAll("\r\n", "\n");
  let plain = "";
  for (let place = 0; place < text.length; place += 1) {
    const letter = text[place];
    if (PAIR.test(text.slice(place, place + 2))) {
      plain += text.slice(place, place + 2);
      place += 1;
    } else if (HIDDEN.test(letter)) {
      parent.append(plain, hidden(letter));
      plain = "";
    } else {
      plain += letter;
    }
  }
  parent.append(plain);
}

function hidden(letter) {
  const code = letter.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
  const mark = element("span", "hidden-character", `U+${code}`);
  mark.title = "a character that cannot be seen";
  return mark;
}
