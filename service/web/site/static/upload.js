// The upload: choose or drop photos, show the progress and the result of each, and open the new order.

import { parse, request } from "./api.js";
import { byId, bytes, make, plural, show } from "./dom.js";
import { addOptions, selectedOptions } from "./enhancement.js";
import { notice } from "./problems.js";

export class Upload {
  #files = [];
  #rows = [];
  #busy = false;

  /** `created` is called with the id of the new order, `rejected` with the problem instead. */
  constructor(config, created, rejected) {
    this.config = config;
    this.created = created;
    this.rejected = rejected;
    byId("upload-limits").textContent =
      `Up to ${config.max_upload_files} photos of at most ${bytes(config.max_upload_bytes)} each: JPEG, PNG, HEIC, TIFF, WebP or raw.`;
    byId("upload-files").addEventListener("change", (event) => { this.#add(event.target.files); event.target.value = ""; });
    this.#acceptDrops(byId("drop"));
    byId("upload").addEventListener("submit", (event) => { event.preventDefault(); this.#send(); });
    byId("upload-sample").addEventListener("click", () => this.#sample());
    addOptions(byId("enhancement"));
  }

  /** Show the form to the operator, and to other visitors why it is off. */
  allow(session) {
    const allowed = session.may("admin");
    byId("upload-fields").disabled = !allowed || this.#busy;
    show(byId("upload-fields"), allowed);
    show(byId("upload-denied"), !allowed);
    byId("upload-denied").textContent = session.state.admin_enabled
      ? "Only the operator of this service can create orders. Sign in with the operator’s token."
      : "This service does not accept photos: its operator has not set a token. Create the order in the Autoenhance web app.";
  }

  #acceptDrops(zone) {
    // Otherwise a photo dropped outside of the zone replaces the page.
    for (const type of ["dragover", "drop"]) window.addEventListener(type, (event) => event.preventDefault());
    for (const type of ["dragenter", "dragover"]) {
      zone.addEventListener(type, (event) => { event.preventDefault(); zone.classList.add("over"); });
    }
    for (const type of ["dragleave", "drop"]) zone.addEventListener(type, () => zone.classList.remove("over"));
    zone.addEventListener("drop", (event) => { event.preventDefault(); this.#add(event.dataTransfer.files); });
  }

  #add(files) {
    if (this.#busy) return;
    this.#files.push(...files);
    this.#render();
  }

  #render() {
    this.#rows = this.#files.map((file, at) => {
      const state = make("span", { className: "hint" }, this.#rejectionHint(file, at) || bytes(file.size));
      const remove = make("button", { type: "button", className: "quiet", aria: { label: `Remove ${file.name}` } }, "Remove");
      remove.addEventListener("click", () => { this.#files.splice(at, 1); this.#render(); });
      const bar = make("progress", { max: file.size || 1, value: 0, hidden: true, aria: { label: `Upload of ${file.name}` } });
      return { row: make("li", {}, make("span", {}, make("span", { className: "name" }, file.name), " ", state), remove, bar), state, remove, bar };
    });
    byId("upload-list").replaceChildren(...this.#rows.map((one) => one.row));
    byId("upload-start").disabled = !this.#files.length;
    byId("upload-start").textContent = this.#files.length ? `Upload ${plural(this.#files.length, "photo")}` : "Upload";
  }

  #rejectionHint(file, at) {
    if (!file.size) return "is empty and will be rejected";
    if (file.size > this.config.max_upload_bytes) return `has ${bytes(file.size)}: too large, and will be rejected`;
    return at >= this.config.max_upload_files ? "is one too many and will be rejected" : "";
  }

  async #sample() {
    this.#working("Creating an order of three sample photos…");
    try {
      this.#done(await request("/api/create-sample-order", { method: "POST" }));
    } catch (problem) {
      this.#failed(problem);
    }
  }

  #send() {
    const form = new FormData();
    const name = byId("upload-name").value.trim();
    if (name) form.append("name", name);
    for (const [field, value] of selectedOptions(byId("enhancement"))) form.append(field, value);
    for (const file of this.#files) form.append("files", file, file.name);
    this.#working(`Uploading ${plural(this.#files.length, "photo")}…`);
    for (const { bar, remove } of this.#rows) { show(bar); show(remove, false); }
    const xhr = new XMLHttpRequest(); // fetch has no upload progress
    xhr.upload.addEventListener("progress", (event) => this.#progress(event.loaded));
    xhr.addEventListener("load", () => {
      try {
        this.#done(parse(xhr.status, xhr.responseText));
      } catch (problem) {
        this.#failed(problem);
      }
    });
    xhr.addEventListener("error", () =>
      this.#reject({ title: "The upload was interrupted", detail: "The connection to the service was lost. Try again." }));
    xhr.open("POST", "/api/create-order");
    xhr.send(form);
  }

  /** Show the progress of each file: they are sent one after the other, so the sent bytes determine it. */
  #progress(sent) {
    let rest = sent;
    this.#files.forEach((file, at) => {
      const done = Math.max(0, Math.min(file.size, rest));
      this.#rows[at].bar.value = done;
      this.#rows[at].state.textContent = done === file.size ? `${bytes(file.size)} sent` : `${bytes(done)} of ${bytes(file.size)}`;
      rest -= file.size;
    });
    if (rest >= 0) byId("upload-status").replaceChildren("Everything is sent. Autoenhance receives the photos…");
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

  #done(result) {
    this.#idle();
    const failed = result.images.filter((one) => one.outcome === "failed");
    this.#files = [];
    this.#render();
    byId("upload-status").replaceChildren(
      `${plural(result.uploaded, "photo")} uploaded. The order below shows when ${result.uploaded === 1 ? "it is" : "they are"} ready.`,
      failed.length ? this.#list(failed) : "");
    this.created(result.order_id);
  }

  #failed(problem) {
    if (problem.document) this.#reject(problem.document);
    else throw problem;
  }

  #reject(problem) {
    this.#idle();
    this.#render();
    const images = problem.failures ?? problem.images ?? [];
    byId("upload-status").replaceChildren(notice(problem), images.length ? this.#list(images.filter((one) => one.outcome === "failed")) : "");
    if (problem.order_id) this.created(problem.order_id);
    this.rejected(problem);
  }

  #list(images) {
    return make("ul", { className: "failures" }, ...images.map((one) => make("li", {}, make("strong", {}, one.file), ` – ${one.detail}`)));
  }
}
