//! How a Ferrostack daemon lives.
