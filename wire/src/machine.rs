//! `hostd` to `vmm`: one machine and its control socket.
