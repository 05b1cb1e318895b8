//! Live migration: a machine goes on in another monitor, and the guest hardly notices.
//!
//! ```text
//!   source                              destination
//!   greeting                    ->
//!                               <-      greeting
//!   Describe                    ->      looks whether processors, memory and devices fit
//!                               <-      Accept, or Refuse with the reason
//!   Data, Zeros, Data, ...      ->      memory, again and again while the guest writes it
//!   Stopped                     ->      the guest stands still
//!   Data, Zeros                 ->      the rest
//!   State                       ->      builds the machine
//!                               <-      Ready, or Refuse
//!   Commit                      ->      the machine is the destination's
//!                               <-      Running
//! ```
//!
//! **Until the source begins to send `Commit` it is the only one that may run the machine, and whatever fails before leaves it running
//! there.** Afterwards the source never runs it again by itself: a `Commit` that reached the kernel may have reached the destination. When
//! no `Running` comes, the source keeps the machine, standing still, for somebody who can look at both sides (the destination's monitor
//! leaves a [`wire::machine::MachineEnd`]): two machines never run, and one that was lost between two hosts is found again.
//!
//! The destination makes devices from its own configuration (its own taps, its own descriptors of the same disks) and gives them the
//! state that comes. Disks must be the same storage; their bytes do not go over the stream.
//!
//! A stream is believed no more than a guest is: see [`frame`] and [`receive`].

pub mod announce;
pub mod describe;
pub mod frame;
pub mod pace;
pub mod receive;
pub mod send;
