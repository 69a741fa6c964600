// A conversation: what was said, a place to write, and answers that appear word by word.

import { h, newId } from "./dom.js";

export function makeChat(ask, stop, settings, makeCopy) {
  const messages = [];
  const log = h("ol", { class: "chat", "aria-live": "polite", "aria-label": "Conversation" });
  const empty = h("li", { class: "empty" }, "Say something.");
  log.append(empty);
  const id = newId("system");
  const system = h("textarea", { id, rows: 2, placeholder: "none" });
  settings.hidden = false;
  settings
    .querySelector(".grid")
    .prepend(h("div", { class: "field wide" }, h("label", { for: id, class: "name" }, "System message"), system));
  const area = h("textarea", { rows: 2, "aria-label": "Your message", placeholder: "Your message" });
  const send = h("button", { type: "submit", class: "primary" }, "Send");
  const halt = h("button", { type: "button", class: "stop", hidden: true, onclick: stop }, "Stop");
  const fresh = h("button", { type: "button", class: "link" }, "New conversation");
  const all = () => (system.value.trim() ? [{ role: "system", content: system.value }, ...messages] : messages);
  const say = (role, content) =>
    log.appendChild(
      h(
        "li",
        { class: role },
        h("span", { class: "who" }, role === "user" ? "You" : "Model"),
        h("p", { class: "text" }, content),
      ),
    ).lastChild;
  fresh.addEventListener("click", () => {
    stop();
    messages.length = 0;
    log.replaceChildren(empty);
    area.focus();
  });
  const copy = makeCopy(() => (area.value.trim() ? [...all(), { role: "user", content: area.value.trim() }] : all()));
  const form = h(
    "form",
    { class: "card composer" },
    area,
    h("p", { class: "actions" }, send, halt, fresh, h("span", { class: "grow" }), copy),
    settings,
  );
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const content = area.value.trim();
    if (!content || send.disabled) return;
    area.value = "";
    empty.remove();
    messages.push({ role: "user", content });
    say("user", content);
    const place = say("assistant", "");
    send.disabled = true;
    halt.hidden = false;
    document.body.classList.add("busy");
    try {
      for await (const { choices } of ask(all())) {
        place.textContent += choices?.[0]?.delta?.content ?? "";
        place.scrollIntoView({ block: "nearest" });
      }
    } catch (error) {
      if (error.name !== "AbortError") place.replaceWith(h("p", { class: "notice", role: "alert" }, error.message));
    }
    if (place.textContent) messages.push({ role: "assistant", content: place.textContent });
    else messages.pop(); // what was not answered is not part of the conversation
    send.disabled = false;
    halt.hidden = true;
    document.body.classList.remove("busy");
    area.focus();
  });
  return h("div", { class: "conversation" }, log, form);
}
