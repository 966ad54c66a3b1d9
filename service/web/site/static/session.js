// The session: the key is sent once; afterwards an HttpOnly cookie authenticates the browser.

import { request, send } from "./api.js";
import { byId, show } from "./dom.js";

const RANK = { download: 1, full: 2, admin: 3 };

export class Session {
  state = { role: null, key_required: false, admin_enabled: false, links_enabled: false };

  /** `changed` is called when the visitor's permissions may have changed, `signedIn` after a sign-in. */
  constructor(changed, signedIn) {
    this.changed = changed;
    this.signedIn = signedIn;
    const dialog = byId("sign-in-dialog");
    byId("sign-in").addEventListener("click", () => this.open());
    byId("sign-in-cancel").addEventListener("click", () => dialog.close());
    byId("sign-out").addEventListener("click", () => this.#signOut());
    byId("sign-in-form").addEventListener("submit", (event) => { event.preventDefault(); this.#signIn(); });
  }

  may(role) {
    return (RANK[this.state.role] ?? 0) >= RANK[role];
  }

  /** Return whether a sign-in is possible: with a key of the service or the operator's token. */
  get canSignIn() {
    return this.state.key_required || this.state.admin_enabled;
  }

  open() {
    if (byId("sign-in-dialog").open) return;
    byId("sign-in-error").textContent = "";
    byId("key").value = "";
    byId("sign-in-dialog").showModal();
  }

  async refresh() {
    this.#update(await request("/session"));
  }

  async #signIn() {
    try {
      this.#update({ ...this.state, ...(await send("/session", { key: byId("key").value })) });
      byId("sign-in-dialog").close();
      this.signedIn();
    } catch (problem) {
      byId("sign-in-error").textContent = problem.document ? `${problem.document.title}. ${problem.document.detail ?? ""}` : String(problem);
    } finally {
      byId("key").value = "";
    }
  }

  async #signOut() {
    await request("/session", { method: "DELETE" });
    await this.refresh();
  }

  #update(state) {
    this.state = state;
    const signedIn = state.signed_in;
    show(byId("sign-in"), !signedIn && !this.may("admin") && this.canSignIn);
    show(byId("sign-out"), signedIn);
    this.changed();
  }
}
