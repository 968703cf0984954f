//! What lbd asks of the kernel by netlink, and how it is undone.
