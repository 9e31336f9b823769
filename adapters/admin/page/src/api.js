// The JSON API, asked with a deadline: a page that hangs says less than one that says it failed.

const TIMEOUT_MS = 2000;

export async function ask(path) {
  const query = `${path.includes("?") ? "&" : "?"}timeout=${TIMEOUT_MS}ms`;
  let response;
  try {
    response = await fetch(`/api/v1/${path}${query}`, {
      signal: AbortSignal.timeout(TIMEOUT_MS + 500),
    });
  } catch (error) {
    throw new Error(
      error.name === "TimeoutError" ? "this node did not answer in time" : "this node is not reachable",
    );
  }
  const body = await response.json();
  if (!response.ok) throw new Error(body.error ?? `status ${response.status}`);
  return body;
}
