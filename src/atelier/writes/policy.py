"""The writing side's bounds in one place; every default is a decision, and its reason stands beside it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """How commands are queued, combined, kept and cleaned up."""

    lanes: int = 2
    """Batches of inventory commands at the same time: when one stands before a lock, the other goes on."""
    largest_batch: int = 256
    """More commands in one transaction only make the last of them wait for the first."""
    batch_target_s: float = 0.2
    """A batch that took longer makes the next ones smaller: the time a command stands in a batch is latency."""
    queue_limit: int = 2_000
    """Inventory commands that wait; at the rate of a hot SKU this is about half a second."""
    catalogue_lanes: int = 3
    """Catalogue commands at the same time; they are rare and do not combine."""
    catalogue_queue_limit: int = 200
    """Catalogue commands that wait."""
    bulk_weight: int = 20
    """A command with this many lines is bulk: it waits behind those that somebody looks at."""
    keys_kept_s: int = 86_400
    """How long a command key is remembered."""
    changes_kept_s: int = 86_400
    """How far back the change feed reaches."""
    sweep_interval_s: float = 0.25
    """How often a writer looks for expired reservations; they are due within one second."""
    note_use_interval_s: float = 5.0
    """How often it is noted which API keys were used; the note itself has minutes."""
    seal_interval_s: float = 1.0
    """How often the audit is sealed."""
    prune_interval_s: float = 60.0
    """How often old keys and changes are removed, in batches."""
    quorum: int = 0
    """Standbys that must have a commit before it is answered; 0: none, the primary alone decides."""
