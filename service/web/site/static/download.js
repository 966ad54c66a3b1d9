// One download: the browser saves the archive natively, and this shows its server-sent events meanwhile.

import { request } from "./api.js";
import { byId, bytes, count, duration, make, plural, reveal, show, uuid } from "./dom.js";
import { address } from "./options.js";
import { notice } from "./problems.js";

// Keeps the request line below the limit of common proxies; longer lists go into the body of a form.
const MAX_IDS_IN_URL = 100;
// The speed is a moving average over this time.
const SPEED_WINDOW_SECONDS = 6;

const OUTCOME_TITLES = {
  complete: (one) => `Done: ${plural(one.downloaded, "image")} in the ZIP, each one checked`,
  partial: (one) => `Done, but ${plural(one.failed, "image")} of ${count(one.total)} ${one.failed === 1 ? "is" : "are"} missing`,
  failed: () => "Nothing could be downloaded",
  rejected: () => "The download was rejected",
  aborted: () => "The download was aborted",
  client_gone: () => "Your browser cancelled the download",
};

// Their detail repeats the text of the reason.
const WITHOUT_DETAIL = ["not_ready", "expired"];
const TONES = { complete: "good", partial: "warn" };
const TITLE = document.title;

export class Download {
  #source = null;
  #images = new Map();
  #samples = [];
  #last = null;
  #startedAt = null;
  running = false;
  order = null; // the order of the download ...
  only = []; // ... and the requested images of it; empty for all

  /**
   * `reasons` has a text for each reason. `onImage` is called with each changed image, `onEnd` at the end of the
   * download, and `onLost` if its progress is not available.
   */
  constructor(reasons, onImage, onEnd, onLost) {
    this.reasons = reasons;
    this.onImage = onImage;
    this.onEnd = onEnd;
    this.onLost = onLost;
  }

  get missing() {
    // An image that was never requested and is not found was removed from the order: a request for it is a 400.
    const removed = (one) => one.reason === "not_found" && one.attempts === 0;
    return [...this.#images.values()].filter((one) => one.state === "failed" && !removed(one)).map((one) => one.image_id);
  }

  /** Start to download an order, or `only` the listed images of it. */
  start(order, query, only) {
    this.#source?.close();
    this.#images.clear();
    this.#samples = [];
    this.#last = this.#startedAt = null;
    this.running = true;
    Object.assign(this, { order, only });
    const id = uuid();
    this.#watch(id);
    const parameters = new URLSearchParams(query);
    parameters.set("archive_id", id);
    if (only.length > MAX_IDS_IN_URL) {
      this.#post(address(order.order_id, parameters), only);
    } else {
      for (const one of only) parameters.append("only", one);
      const link = make("a", { href: address(order.order_id, parameters), download: "" });
      document.body.append(link);
      link.click();
      link.remove();
    }
    byId("progress-title").textContent = "Downloading…";
    byId("progress-text").textContent = "Waiting for the first image. Your browser saves the ZIP; this page shows the progress.";
    for (const part of ["rejection", "failure-list"]) byId(part).replaceChildren();
    for (const part of ["failures", "missing", "again"]) show(byId(part), false);
    byId("bar").removeAttribute("value");
    byId("bar").dataset.tone = "";
    show(byId("bar"));
    show(byId("progress"));
    byId("progress-title").focus({ preventScroll: true });
    reveal(byId("progress"), "start");
  }

  /** Post the ids as a form into a hidden frame, so that a response without a file does not replace the page. */
  #post(action, only) {
    const fields = only.map((one) => make("input", { type: "hidden", name: "only", value: one }));
    const form = make("form", { method: "post", action, target: "saving", hidden: true }, ...fields);
    document.body.append(form);
    form.submit();
    form.remove();
  }

  #watch(id) {
    const source = new EventSource(`/archives/${id}/events`);
    this.#source = source;
    const on = (type, handle) => source.addEventListener(type, (event) => handle(JSON.parse(event.data)));
    on("snapshot", (one) => { for (const image of one.images) this.#update(image); this.#showProgress(one); });
    on("image", (image) => { this.#update(image); this.#showProgress(image); });
    on("archive", (one) => this.#showProgress(one));
    on("end", (one) => { source.close(); this.#showProgress(one); this.#end(one); });
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED && source === this.#source) this.#lost(source, id);
    });
  }

  /** Handle the loss of the events: the download was rejected, or streams from a replica that is not reachable here. */
  async #lost(source, id) {
    const rejection = await request(`/archives/${id}`).then(() => null, (problem) => problem.document.refused);
    if (source !== this.#source) return;
    if (rejection) {
      this.#end({ state: "rejected", total: 0, downloaded: 0, failed: 0, problem: rejection });
      return;
    }
    this.running = false;
    byId("progress-title").textContent = "Your browser downloads the ZIP";
    byId("progress-text").textContent = "Its progress cannot be shown: another replica of the service streams it.";
    show(byId("bar"), false);
    document.title = TITLE;
    this.onEnd();
    this.onLost();
  }

  #update(image) {
    this.#images.set(image.image_id, image);
    this.onImage(image);
  }

  #showProgress(counts) {
    if (counts.total === undefined) return;
    this.#last = { ...this.#last, ...counts };
    const { total, downloaded, failed, bytes: sent } = this.#last;
    const now = performance.now() / 1000;
    this.#samples.push([now, sent, downloaded + failed]);
    while (this.#samples.length > 2 && now - this.#samples[1][0] > SPEED_WINDOW_SECONDS) this.#samples.shift();
    const [since, before] = this.#samples[0];
    const speed = now - since > 0.5 ? (sent - before) / (now - since) : 0;
    if (!total) return;
    Object.assign(byId("bar"), { max: total, value: downloaded + failed });
    document.title = `${Math.floor((100 * (downloaded + failed)) / total)} % · ${TITLE}`; // visible while another tab is open
    byId("progress-text").textContent = [
      `${count(downloaded)} of ${plural(total, "image")}`,
      failed ? `${count(failed)} missing` : "",
      bytes(sent),
      speed ? `${bytes(Math.round(speed))}/s` : "",
      this.#last.credits_spent ? `${plural(this.#last.credits_spent, "credit")} spent` : "",
      this.#remaining(now),
    ].filter(Boolean).join(" · ");
  }

  /** Estimate the remaining time; empty until there is enough data. */
  #remaining(now) {
    const { total, downloaded, failed } = this.#last;
    const done = downloaded + failed;
    this.#startedAt ??= now;
    if (done < 2 || done === total || now - this.#startedAt < 3) return "";
    return `about ${duration(((now - this.#startedAt) / done) * (total - done))} left`;
  }

  #end(one) {
    this.running = false;
    const { state, total, downloaded, failed } = one;
    Object.assign(byId("bar"), { max: total || 1, value: downloaded + failed });
    byId("bar").dataset.tone = TONES[state] ?? "bad";
    show(byId("bar"), downloaded > 0);
    const title = (OUTCOME_TITLES[state] ?? (() => state))(one);
    document.title = `${title} · ${TITLE}`;
    byId("progress-title").textContent = title;
    byId("progress-said").textContent = title;
    if (!total) byId("progress-text").textContent = "";
    if (one.problem) byId("rejection").append(notice(one.problem));
    const missing = [...this.#images.values()].filter((image) => image.state === "failed");
    byId("failure-list").append(...missing.map((image) => this.#failure(image)));
    show(byId("failures"), missing.length > 0);
    show(byId("missing"), state === "partial" && this.missing.length > 0);
    show(byId("again"), state !== "partial" && state !== "complete");
    this.onEnd();
  }

  /** Describe a missing image: its reason, whether a retry helps, and the detail. */
  #failure(image) {
    const { text, advice } = this.reasons[image.reason] ?? { text: image.reason, advice: "" };
    return make("li", { data: { reason: image.reason } },
      make("strong", {}, image.name || image.image_id), ` – ${text} ${advice}`,
      image.detail && !WITHOUT_DETAIL.includes(image.reason) ? make("span", { className: "hint" }, image.detail) : null);
  }
}
