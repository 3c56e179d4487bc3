//! The machine that is not there: its run state, its events, its console and its report.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{broadcast, watch};
use tokio::time::sleep;

use crate::Behavior;
use crate::options::Options;

/// As much as a slow QMP client may be behind.
const EVENTS: usize = 4096;

/// Shared by all who speak for it.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) behavior: Behavior,
    pub(crate) machine: String,
    stays: bool,
    panic_stays: bool,
    state: Mutex<State>,
    events: broadcast::Sender<Value>,
    console: broadcast::Sender<String>,
    log: Option<Arc<File>>,
    reported: watch::Sender<bool>,
    told: AtomicBool,
    ended: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    status: &'static str,
    booted: bool,
}

impl Guest {
    pub(crate) fn new(options: &Options, behavior: Behavior, log: Option<Arc<File>>) -> Arc<Guest> {
        Arc::new(Guest {
            behavior,
            machine: options.machine.clone(),
            stays: options.stays,
            panic_stays: options.panic_stays,
            state: Mutex::new(State {
                status: "prelaunch",
                booted: false,
            }),
            events: broadcast::Sender::new(EVENTS),
            console: broadcast::Sender::new(64),
            log,
            reported: watch::Sender::new(false),
            told: AtomicBool::new(false),
            ended: watch::Sender::new(false),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn status(&self) -> &'static str {
        self.state().status
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<Value> {
        self.events.subscribe()
    }

    pub(crate) fn emit(&self, name: &str, data: Value) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let timestamp = json!({"seconds": now.as_secs(), "microseconds": now.subsec_micros()});
        let mut event = json!({"timestamp": timestamp, "event": name});
        if !data.is_null() {
            event["data"] = data;
        }
        // Nobody may be listening.
        let _ = self.events.send(event);
    }

    /// Lets it run; the first time, it boots.
    pub(crate) fn resume(self: &Arc<Guest>) {
        let boots = {
            let mut state = self.state();
            state.status = "running";
            !std::mem::replace(&mut state.booted, true)
        };
        self.emit("RESUME", Value::Null);
        if boots {
            self.boot();
        }
    }

    pub(crate) fn halt(&self, status: &'static str) {
        self.state().status = status;
        self.emit("STOP", Value::Null);
    }

    /// The power button.
    pub(crate) fn powerdown(self: &Arc<Guest>) {
        self.emit("POWERDOWN", Value::Null);
        if !self.behavior.ignore_powerdown && self.status() == "running" {
            self.at(20, |guest| guest.poweroff());
        }
    }

    /// The guest powers itself off; QEMU goes with it or stays, as it was told.
    fn poweroff(&self) {
        self.emit(
            "SHUTDOWN",
            json!({"guest": true, "reason": "guest-shutdown"}),
        );
        if self.stays {
            self.halt("shutdown");
        } else {
            self.end();
        }
    }

    fn panic(&self) {
        self.print("[    1.000000] Kernel panic - not syncing: fake\n");
        let action = if self.panic_stays {
            "pause"
        } else {
            "poweroff"
        };
        self.emit("GUEST_PANICKED", json!({"action": action}));
        if self.panic_stays {
            self.halt("guest-panicked");
        } else {
            self.end();
        }
    }

    pub(crate) async fn quit(&self, reason: &str) {
        self.emit("SHUTDOWN", json!({"guest": false, "reason": reason}));
        // Events are delivered before the connection ends, as QEMU does.
        sleep(Duration::from_millis(2)).await;
        self.end();
    }

    fn end(&self) {
        self.ended.send_replace(true);
    }

    pub(crate) async fn ended(&self) {
        until_true(&mut self.ended.subscribe()).await;
    }

    fn at(self: &Arc<Guest>, time: u64, act: impl FnOnce(&Guest) + Send + 'static) {
        let guest = self.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(time)).await;
            act(&guest);
        });
    }

    fn boot(self: &Arc<Guest>) {
        let behavior = self.behavior.clone();
        for (time, text) in behavior.console {
            self.at(time, move |guest| guest.print(&text));
        }
        if let Some(time) = behavior.report {
            self.at(time, |guest| {
                guest.reported.send_replace(true);
            });
        }
        if let Some(file) = behavior.report_at_file {
            let guest = self.clone();
            tokio::spawn(async move {
                while !file.exists() {
                    sleep(Duration::from_millis(10)).await;
                }
                guest.reported.send_replace(true);
            });
        }
        if let Some(time) = behavior.panic {
            self.at(time, Guest::panic);
        }
        if let Some(time) = behavior.poweroff {
            self.at(time, Guest::poweroff);
        }
        if let Some(time) = behavior.abort {
            self.at(time, |_| std::process::abort());
        }
        for time in behavior.resets {
            self.at(time, |guest| {
                guest.emit("RESET", json!({"guest": true, "reason": "guest-reset"}));
            });
        }
        if let Some(time) = behavior.disk_full {
            self.at(time, |guest| {
                guest.emit(
                    "BLOCK_IO_ERROR",
                    json!({"device": "", "node-name": "disk0", "operation": "write", "action": "stop",
                           "nospace": true, "reason": "No space left on device"}),
                );
                guest.halt("io-error");
            });
        }
        if behavior.flood > 0 {
            let guest = self.clone();
            tokio::spawn(async move { guest.flood().await });
        }
    }

    /// As fast as whoever listens takes them: QEMU loses none.
    async fn flood(&self) {
        for number in 0..self.behavior.flood {
            while self.events.len() > EVENTS / 2 {
                sleep(Duration::from_millis(1)).await;
            }
            self.emit(
                "RTC_CHANGE",
                json!({"offset": number, "qom-path": "/machine/rtc"}),
            );
        }
    }

    fn print(&self, text: &str) {
        if let Some(log) = &self.log {
            // A full disk is the test's business.
            let _ = log.as_ref().write_all(text.as_bytes());
        }
        let _ = self.console.send(text.to_owned());
    }

    fn report(&self) -> String {
        let report = json!({"kiln": 1, "event": "ready", "boot_id": format!("fake-{}", std::process::id()),
                            "hostname": self.machine, "addresses": self.behavior.addresses});
        format!("{report}\n")
    }
}

async fn until_true(flag: &mut watch::Receiver<bool>) {
    // Fails only without its sender, which lives as long as the guest.
    let _ = flag.wait_for(|flag| *flag).await;
}

/// Serves one client after the other on a socket that is not QMP. Everything that they say is taken.
pub(crate) async fn port(name: String, listener: UnixListener, guest: Arc<Guest>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut console = guest.console.subscribe();
        let mut reported = guest.reported.subscribe();
        let mut report_due = name == "org.kiln.report.0";
        let mut waste = [0; 4096];
        loop {
            let written = tokio::select! {
                text = console.recv(), if name == "console" => match text {
                    Ok(text) => stream.write_all(text.as_bytes()).await,
                    Err(_) => Ok(()),
                },
                () = until_true(&mut reported), if report_due => {
                    report_due = false;
                    if guest.behavior.report_once && guest.told.swap(true, Ordering::Relaxed) {
                        continue;
                    }
                    stream.write_all(guest.report().as_bytes()).await
                }
                read = stream.read(&mut waste) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(_) => Ok(()),
                },
            };
            if written.is_err() {
                break;
            }
        }
    }
}
