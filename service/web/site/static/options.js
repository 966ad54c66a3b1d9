// What the form says as parameters of the download, and as a command for the terminal.

import { byId } from "./dom.js";

// Left out where they are what the service takes by itself: shorter addresses, and links that stay true.
const DEFAULTS = { preview: "true", format: "jpeg" };

/** The chosen parameters of the download, in the form's order. */
export function parameters(order, facts) {
  const chosen = [...new FormData(byId("options"))].filter(([name, value]) => value !== "" && DEFAULTS[name] !== value);
  const query = new URLSearchParams(chosen);
  if (canWait(order, facts) && byId("wait").checked) query.set("wait", facts.wait_max_seconds);
  return query;
}

/** Whether something may still become ready. */
export const canWait = (order, facts) => Boolean(facts.wait_max_seconds && (order.busy || order.counts.not_ready));

export const spendsCredits = (query) => query.get("preview") === "false" && query.get("dev_mode") !== "true";

/** What the chosen download costs at most: one credit for each image that would come and is not paid yet. */
export function price(order, query, only = []) {
  if (!spendsCredits(query)) return 0;
  const coming = query.has("wait") ? ["ready", "not_ready"] : ["ready"];
  return order.images.filter((one) =>
    !one.paid && coming.includes(one.readiness) && (!only.length || only.includes(one.image_id))).length;
}

export function address(orderId, query) {
  const text = query.toString();
  return `/orders/${orderId}/images${text ? `?${text}` : ""}`;
}

export function command(orderId, query, keyRequired) {
  const key = keyRequired ? ' --header "X-API-Key: $KEY"' : "";
  return `curl --fail-with-body${key} --output images.zip "${location.origin}${address(orderId, query)}"`;
}
