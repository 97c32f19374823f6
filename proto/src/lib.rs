//! Wire formats: KEDA's external scaler, and our own messages.
//!
//! Only the edge files of the other crates touch these types.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::str_to_string,
    clippy::wildcard_imports,
    clippy::use_self,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

/// `externalscaler.proto`: what KEDA asks a scaler.
pub mod keda {
    tonic::include_proto!("externalscaler");
}

/// `ebb/v1`: requests, results and worker status.
pub mod ebb {
    /// Version 1; fields are only ever added.
    pub mod v1 {
        tonic::include_proto!("ebb.v1");
    }
}

/// All files above, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
