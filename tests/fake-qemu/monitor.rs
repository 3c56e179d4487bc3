//! QMP as QEMU 10.0.2 speaks it, to one client at a time.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;

use crate::guest::Guest;

/// Serves until the process ends. A second client waits without a greeting, as with QEMU.
pub(crate) async fn serve(listener: UnixListener, guest: Arc<Guest>) {
    while let Ok((stream, _)) = listener.accept().await {
        if guest.behavior.hang {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(guest.behavior.greet_after)).await;
        // A client that went away is no fault of the server's.
        let _ = talk(stream, &guest).await;
    }
}

async fn talk(stream: UnixStream, guest: &Arc<Guest>) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    if guest.behavior.nonsense {
        return writer.write_all(b"220 fake ESMTP ready\r\n").await;
    }
    let version = json!({"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "fake"});
    send(
        &mut writer,
        &json!({"QMP": {"version": version, "capabilities": ["oob"]}}),
    )
    .await?;

    let mut lines = BufReader::new(reader).lines();
    let mut events = guest.events();
    let mut negotiated = false;
    loop {
        tokio::select! {
            // What an answer brought about is told before it.
            biased;
            event = events.recv(), if negotiated => match event {
                Ok(event) => send(&mut writer, &event).await?,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Ok(()),
            },
            line = lines.next_line() => {
                let Some(line) = line? else { return Ok(()) };
                let reply = match serde_json::from_str::<Value>(&line) {
                    Ok(request) => {
                        let mut reply = answer(&request, &mut negotiated, guest);
                        if let Some(id) = request.get("id") {
                            reply["id"] = id.clone();
                        }
                        reply
                    }
                    Err(error) => refuse("GenericError", &format!("JSON parse error, {error}")),
                };
                while let Ok(event) = events.try_recv() {
                    if negotiated {
                        send(&mut writer, &event).await?;
                    }
                }
                send(&mut writer, &reply).await?;
                if line.contains("\"quit\"") && !guest.behavior.ignore_quit {
                    let guest = guest.clone();
                    tokio::spawn(async move { guest.quit("host-qmp-quit").await });
                }
            }
        }
    }
}

async fn send(writer: &mut OwnedWriteHalf, message: &Value) -> std::io::Result<()> {
    writer.write_all(format!("{message}\r\n").as_bytes()).await
}

fn refuse(class: &str, desc: &str) -> Value {
    json!({"error": {"class": class, "desc": desc}})
}

fn answer(request: &Value, negotiated: &mut bool, guest: &Arc<Guest>) -> Value {
    let Some(command) = request.get("execute").and_then(Value::as_str) else {
        return refuse("GenericError", "QMP input lacks member 'execute'");
    };
    if !*negotiated && command != "qmp_capabilities" {
        return refuse(
            "CommandNotFound",
            "Expecting capabilities negotiation with 'qmp_capabilities'",
        );
    }
    let done = match command {
        "qmp_capabilities" => {
            *negotiated = true;
            json!({})
        }
        "query-status" => {
            let status = guest.status();
            json!({"status": status, "running": status == "running"})
        }
        "cont" if matches!(guest.status(), "shutdown" | "guest-panicked") => {
            return refuse("GenericError", "Resetting the Virtual Machine is required");
        }
        "cont" => {
            guest.resume();
            json!({})
        }
        "stop" => {
            guest.halt("paused");
            json!({})
        }
        "system_powerdown" => {
            guest.powerdown();
            json!({})
        }
        "system_reset" => {
            guest.emit(
                "RESET",
                json!({"guest": false, "reason": "host-qmp-system-reset"}),
            );
            json!({})
        }
        "quit" | "block_resize" => json!({}),
        "query-version" => {
            json!({"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "fake"})
        }
        "query-name" => json!({"name": guest.machine}),
        "query-kvm" => json!({"enabled": false, "present": true}),
        "query-block" | "query-chardev" | "query-cpus-fast" | "query-named-block-nodes" => {
            json!([])
        }
        "human-monitor-command" => json!(""),
        _ => {
            return refuse(
                "CommandNotFound",
                &format!("The command {command} has not been found"),
            );
        }
    };
    json!({"return": done})
}
