//! QMP, one question at a time.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Monitor {
    lines: BufReader<UnixStream>,
}

impl Monitor {
    /// After the greeting; the error is that QEMU closed the connection instead.
    pub(crate) fn connect(socket: &Path) -> Result<Monitor, String> {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut monitor = Monitor {
            lines: BufReader::new(stream),
        };
        monitor.next()?;
        monitor.try_ask("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    fn next(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => Err("QEMU closed the connection".to_owned()),
            Ok(_) => serde_json::from_str(&line).map_err(|error| format!("{error}: {line}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The answer, or QEMU's words for why there is none.
    pub(crate) fn try_ask(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let question = json!({"execute": command, "arguments": arguments});
        // In one piece: QEMU obeys `quit` before it has read the end of the line.
        let line = format!("{question}\n");
        let stream = self.lines.get_mut();
        stream
            .write_all(line.as_bytes())
            .map_err(|error| format!("{question}: {error}"))?;
        loop {
            let mut answer = self.next()?;
            if let Some(error) = answer.get("error") {
                return Err(error["desc"].as_str().unwrap().to_owned());
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, command: &str) -> Value {
        self.try_ask(command, &json!({})).unwrap()
    }

    /// A property of an object, by its path in QEMU's object model.
    pub(crate) fn property(&mut self, path: &str, property: &str) -> Option<Value> {
        self.try_ask("qom-get", &json!({"path": path, "property": property}))
            .ok()
    }

    /// The paths and types of an object's children.
    pub(crate) fn children(&mut self, path: &str) -> Vec<(String, String)> {
        let found = self.try_ask("qom-list", &json!({"path": path})).unwrap();
        let child = |entry: &Value| {
            let kind = entry["type"].as_str()?.strip_prefix("child<")?;
            let name = entry["name"].as_str()?;
            Some((
                format!("{path}/{name}"),
                kind.trim_end_matches('>').to_owned(),
            ))
        };
        found.as_array().unwrap().iter().filter_map(child).collect()
    }

    /// What the monitor for people prints.
    pub(crate) fn human(&mut self, line: &str) -> String {
        let arguments = json!({"command-line": line});
        let answer = self.try_ask("human-monitor-command", &arguments).unwrap();
        answer.as_str().unwrap().to_owned()
    }
}
