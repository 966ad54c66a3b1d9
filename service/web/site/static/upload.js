// Photos in: choose or drop them, watch them go, learn what became of each, and go on to the new order.

import { ask, read } from "./api.js";
import { byId, bytes, make, plural, show } from "./dom.js";
import { addChoices, chosen } from "./enhancement.js";
import { notice } from "./problems.js";

export class Upload {
  #files = [];
  #rows = [];
  #busy = false;

  /** `created` is called with the id of the new order, `refused` with the problem instead. */
  constructor(facts, created, refused) {
    this.facts = facts;
    this.created = created;
    this.refused = refused;
    byId("upload-limits").textContent =
      `Up to ${facts.max_upload_files} photos of at most ${bytes(facts.max_upload_bytes)} each: JPEG, PNG, HEIC, TIFF, WebP or raw.`;
    byId("upload-files").addEventListener("change", (event) => { this.#add(event.target.files); event.target.value = ""; });
    this.#dropping(byId("drop"));
    byId("upload").addEventListener("submit", (event) => { event.preventDefault(); this.#send(); });
    byId("upload-sample").addEventListener("click", () => this.#sample());
    addChoices(byId("enhancement"));
  }

  /** Offer the form to the operator; tell everybody else why not. */
  allow(session) {
    const allowed = session.may("admin");
    byId("upload-fields").disabled = !allowed || this.#busy;
    show(byId("upload-fields"), allowed);
    show(byId("upload-denied"), !allowed);
    byId("upload-denied").textContent = session.state.admin_enabled
      ? "Only the operator of this service can create orders. Sign in with the operator’s token."
      : "This service does not take photos: its operator has not set a token. Create the order in the Autoenhance web app.";
  }

  #dropping(zone) {
    // A photo that misses the zone would otherwise be opened in place of the page.
    for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
    for (const kind of ["dragenter", "dragover"]) {
      zone.addEventListener(kind, (event) => { event.preventDefault(); zone.classList.add("over"); });
    }
    for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => zone.classList.remove("over"));
    zone.addEventListener("drop", (event) => { event.preventDefault(); this.#add(event.dataTransfer.files); });
  }

  #add(files) {
    if (this.#busy) return;
    this.#files.push(...files);
    this.#render();
  }

  #render() {
    this.#rows = this.#files.map((file, at) => {
      const state = make("span", { className: "hint" }, this.#flaw(file, at) || bytes(file.size));
      const remove = make("button", { type: "button", className: "quiet", aria: { label: `Remove ${file.name}` } }, "Remove");
      remove.addEventListener("click", () => { this.#files.splice(at, 1); this.#render(); });
      const bar = make("progress", { max: file.size || 1, value: 0, hidden: true, aria: { label: `Upload of ${file.name}` } });
      return { row: make("li", {}, make("span", {}, make("span", { className: "name" }, file.name), " ", state), remove, bar), state, remove, bar };
    });
    byId("upload-list").replaceChildren(...this.#rows.map((one) => one.row));
    byId("upload-start").disabled = !this.#files.length;
    byId("upload-start").textContent = this.#files.length ? `Upload ${plural(this.#files.length, "photo")}` : "Upload";
  }

  #flaw(file, at) {
    if (!file.size) return "is empty and will be refused";
    if (file.size > this.facts.max_upload_bytes) return `has ${bytes(file.size)}: too large, and will be refused`;
    return at >= this.facts.max_upload_files ? "is one too many and will be refused" : "";
  }

  async #sample() {
    this.#working("Creating an order of three sample photos…");
    try {
      this.#done(await ask("/api/create-sample-order", { method: "POST" }));
    } catch (problem) {
      this.#failed(problem);
    }
  }

  #send() {
    const form = new FormData();
    const name = byId("upload-name").value.trim();
    if (name) form.append("name", name);
    for (const [field, value] of chosen(byId("enhancement"))) form.append(field, value);
    for (const file of this.#files) form.append("files", file, file.name);
    this.#working(`Uploading ${plural(this.#files.length, "photo")}…`);
    for (const { bar, remove } of this.#rows) { show(bar); show(remove, false); }
    const request = new XMLHttpRequest(); // fetch cannot tell how much of a body has gone
    request.upload.addEventListener("progress", (event) => this.#progress(event.loaded));
    request.addEventListener("load", () => {
      try {
        this.#done(read(request.status, request.responseText));
      } catch (problem) {
        this.#failed(problem);
      }
    });
    request.addEventListener("error", () =>
      this.#refuse({ title: "The upload broke off", detail: "The connection to the service was lost. Try again." }));
    request.open("POST", "/api/create-order");
    request.send(form);
  }

  /** The files go one after the other, so that the bytes sent tell how far each is. */
  #progress(sent) {
    let rest = sent;
    this.#files.forEach((file, at) => {
      const gone = Math.max(0, Math.min(file.size, rest));
      this.#rows[at].bar.value = gone;
      this.#rows[at].state.textContent = gone === file.size ? `${bytes(file.size)} sent` : `${bytes(gone)} of ${bytes(file.size)}`;
      rest -= file.size;
    });
    if (rest >= 0) byId("upload-status").replaceChildren("Everything is sent. Autoenhance is taking the photos in…");
  }

  #working(text) {
    this.#busy = true;
    byId("upload-fields").disabled = true;
    byId("upload-status").replaceChildren(text);
  }

  #idle() {
    this.#busy = false;
    byId("upload-fields").disabled = false;
  }

  #done(answer) {
    this.#idle();
    const refused = answer.images.filter((one) => one.outcome === "failed");
    this.#files = [];
    this.#render();
    byId("upload-status").replaceChildren(
      `${plural(answer.uploaded, "photo")} uploaded. The order below shows when ${answer.uploaded === 1 ? "it is" : "they are"} ready.`,
      refused.length ? this.#list(refused) : "");
    this.created(answer.order_id);
  }

  #failed(problem) {
    if (problem.document) this.#refuse(problem.document);
    else throw problem;
  }

  #refuse(problem) {
    this.#idle();
    this.#render();
    const images = problem.failures ?? problem.images ?? [];
    byId("upload-status").replaceChildren(notice(problem), images.length ? this.#list(images.filter((one) => one.outcome === "failed")) : "");
    if (problem.order_id) this.created(problem.order_id);
    this.refused(problem);
  }

  #list(images) {
    return make("ul", { className: "failures" }, ...images.map((one) => make("li", {}, make("strong", {}, one.file), ` – ${one.detail}`)));
  }
}
