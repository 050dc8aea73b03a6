"""Every bound on untrusted sizes, in one place, with its reason."""

MAX_RECORD_BYTES = 1 << 20
"""One signed record. The largest is the Roster: about 170 bytes a member, 4,096 members."""

MAX_MANIFEST_BYTES = 1 << 20
"""A run or dataset manifest: a dataset of 4,000 shards takes about 600 KiB."""

MAX_CHUNK_ELEMENTS = 1 << 18
"""Elements of one chunk of the update vector: 1 MiB as fp32, well under p2pd's 4 MiB message."""

MAX_VECTOR_ELEMENTS = 1 << 36
"""Parameters of a model: keeps chunk counts within 32 bits and sizes within 64."""

MAX_ROSTER_MEMBERS = 4096
"""Members of one butterfly; beyond it a run needs more than one level."""

MAX_PIECE_BYTES = 1 << 20
"""One piece of a streamed blob: bounds what a slow reader keeps in memory."""

MAX_LEAF_BYTES = 65_535
"""One leaf of the log: C2SP tlog-tiles length-prefixes entries with 16 bits."""

MAX_GRPC_MESSAGE_BYTES = 4 << 20
"""One gRPC message, checked by the transport before we read it."""

REQUEST_FRESHNESS_MS = 120_000
"""A request without a natural key must be younger than this on the coordinator's clock."""

MAX_MULTIADDRS = 16
MAX_MULTIADDR_CHARS = 256
MAX_DISPLAY_NAME_CHARS = 64
MAX_DHT_VALUE_BYTES = 64 << 10
"""One value in the DHT; anything larger goes by digest."""
