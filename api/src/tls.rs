//! The box's own CA and the server certificate.
