"""`relay` whose connections are renewed each second, as if the provider cut them so often."""

from dataclasses import replace

from relay.__main__ import main
from relay.providers.coinbase import Session

RENEW_SECS = 1.0
_connect = Session.connect
Session.connect = lambda self: replace(_connect(self), renew_secs=RENEW_SECS)  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
