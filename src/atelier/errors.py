"""The error tree: what can go wrong, told apart by what the caller may do about it.

```
AtelierError                      one clear line for a person
├── SettingsError                 the environment or an option is wrong; nothing was started
├── InvalidTokenError             a causal token that is malformed or forged
├── HistoryLostError              a token of another system, or of history that a failover threw away
├── DeadlineExceededError         the request's time is used up
└── NodeError                     a server of the cluster did not do its part
    ├── NoReplicaError            no node may serve this read now
    ├── PrimaryUnavailableError   no primary is known, or it went away; nothing was done
    ├── OverloadedError           a bounded queue is full; nothing was done
    └── OutcomeUnknownError       a commit was sent and its answer was lost
```

"Failed" and "outcome unknown" are different types on purpose. Knows no framework and no driver; the docstring of a
class is its default message. Refusals of a command are no errors but verdicts (`atelier.writes.rules`).
"""


class AtelierError(Exception):
    """Something went wrong in atelier."""

    def __init__(self, message: str | None = None) -> None:
        """Takes the message for a person; None means the docstring of the class."""
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])


class SettingsError(AtelierError):
    """The settings are wrong."""


class InvalidTokenError(AtelierError):
    """The token is malformed or was not made by this service."""


class HistoryLostError(AtelierError):
    """The token names a history that this database does not have (any more)."""


class DeadlineExceededError(AtelierError):
    """The time of this request is used up."""


class NodeError(AtelierError):
    """A database node did not do its part."""


class NoReplicaError(NodeError):
    """No database node may serve this read now."""


class PrimaryUnavailableError(NodeError):
    """The primary cannot be reached; nothing was done."""


class OverloadedError(NodeError):
    """Too many requests are waiting already; nothing was done."""


class OutcomeUnknownError(NodeError):
    """The commit was sent and its answer was lost; ask again with the same key."""
