"""Messages to a webhook: failures, promotions, refusals, clips set apart, and late or dead runs.

The environment variable QDFORMER_WEBHOOK holds its address, which may contain a secret and is never shown. Without it
nothing is sent.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import urllib.error
import urllib.request

VARIABLE = "QDFORMER_WEBHOOK"
_TIMEOUT = 5.0


def notify(event: str, text: str) -> bool:
    """Post `{"event": ..., "text": ...}`; return whether it was received. A failure is a warning, never an error."""
    url = os.environ.get(VARIABLE)
    if not url:
        return False
    body = json.dumps({"event": event, "text": text}).encode()
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=_TIMEOUT).close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
        print(f"warning: {VARIABLE}: the message {event!r} was not delivered ({reason})", file=sys.stderr, flush=True)
        return False
    return True
