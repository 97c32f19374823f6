//! An HTTP front door for those who do not want a broker's client.

pub mod openai;
