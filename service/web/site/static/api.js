// The client of the service: JSON in, JSON out, and every error as a Problem.

/** A problem document (RFC 9457) instead of the expected response, or the lack of a response. */
export class Problem extends Error {
  constructor(document) {
    super(document.title);
    this.document = document;
  }
}

/** Send a request and return the JSON of its response; throw a `Problem` otherwise. */
export async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { headers: { Accept: "application/json" }, credentials: "same-origin", ...options });
  } catch {
    throw new Problem({ type: "/problems/unreachable", title: "The service does not respond", detail: "Check the connection." });
  }
  return parse(response.status, response.status === 204 ? "" : await response.text());
}

export const send = (path, body) =>
  request(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });

/** Return the JSON of a successful response, or throw the problem it is. */
export function parse(status, text) {
  let json = null;
  try {
    json = text ? JSON.parse(text) : null;
  } catch {
    throw new Problem({ type: "/problems/unreadable", title: "The response did not come from this service", status });
  }
  if (status < 200 || status > 299) {
    throw new Problem(json ?? { title: `The service responded with status ${status}`, status });
  }
  return json;
}
