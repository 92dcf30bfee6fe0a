// Questions to the server behind a page.

export class RequestError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // of HTTP; 0 where there is no answer
  }
}

// The answer to a request: a POST of `body` as JSON, or of a Blob as it is, or a GET without one.
export async function request(path, body) {
  const isBlob = body instanceof Blob;
  const options = body && {
    method: "POST",
    headers: { "Content-Type": isBlob ? "application/octet-stream" : "application/json" },
    body: isBlob ? body : JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new RequestError("The server does not answer. Start it again, then go on here.", 0);
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  throw new RequestError(answer?.error ?? `The server answers ${response.status}`, response.status);
}

export const ask = async (path, body) => (await request(path, body)).json();
export const loadPicture = async (path) => createImageBitmap(await (await request(path)).blob());
