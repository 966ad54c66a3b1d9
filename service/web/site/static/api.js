// Talks to the service: JSON in, JSON out, and every refusal as a Problem.

/** What the service answered with instead of what was asked for (RFC 9457), or that it did not answer. */
export class Problem extends Error {
  constructor(document) {
    super(document.title);
    this.document = document;
  }
}

export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { headers: { Accept: "application/json" }, credentials: "same-origin", ...options });
  } catch {
    throw new Problem({ type: "/problems/unreachable", title: "The service does not answer", detail: "Check the connection." });
  }
  return read(response.status, response.status === 204 ? "" : await response.text());
}

export const send = (path, body) =>
  ask(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });

/** Return the answer of a status and a body, or throw the problem it is. */
export function read(status, text) {
  let answer = null;
  try {
    answer = text ? JSON.parse(text) : null;
  } catch {
    throw new Problem({ type: "/problems/unreadable", title: "Something else than this service answered", status });
  }
  if (status < 200 || status > 299) {
    throw new Problem(answer ?? { title: `The service answered with status ${status}`, status });
  }
  return answer;
}
