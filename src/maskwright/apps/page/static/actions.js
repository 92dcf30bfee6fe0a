// What a page does, one action at a time, and what it says of it in its element `status`.

let busy = false;

export function tell(text, isError = false) {
  const status = document.getElementById("status");
  status.textContent = text;
  status.classList.toggle("error", isError);
}

// Do something unless another action is under way; a mistake is told and changes nothing.
export async function once(action) {
  if (busy) return;
  setBusy(true);
  try {
    await action();
  } catch (error) {
    tell(error.message, true);
  } finally {
    setBusy(false);
  }
}

function setBusy(value) {
  busy = value;
  document.body.setAttribute("aria-busy", String(busy));
}
