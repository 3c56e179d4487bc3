//! stub
use crate::supervisor::diagnose::Finding;
use std::path::Path;
#[derive(Debug)]
pub struct ConsoleWatch;
#[derive(Debug)]
pub struct ConsoleEvent {
    pub machine: String,
    pub findings: Vec<Finding>,
}
impl ConsoleWatch {
    pub fn new() -> std::io::Result<ConsoleWatch> {
        Ok(ConsoleWatch)
    }
    pub fn add_at_end(&mut self, _name: &str, _path: &Path) {}
    pub fn remove(&mut self, _name: &str) {}
    pub async fn next(&mut self) -> ConsoleEvent {
        std::future::pending().await
    }
}
pub fn sanitize(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .filter(|c| *c == '\n' || *c == '\t' || !c.is_control())
        .collect()
}
