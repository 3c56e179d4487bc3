use super::*;

fn report() -> ReportRecord {
    ReportRecord {
        boot_id: "b".to_owned(),
        hostname: "h".to_owned(),
        addresses: Vec::new(),
    }
}

/// A machine that runs and has reported.
fn ready(now: Instant, restart: Restart) -> Machine {
    let mut machine = Machine::stopped(restart, true, String::new());
    for event in [Event::StartAsked, Event::Greeted, Event::Resumed] {
        let _ = machine.on(now, event);
    }
    assert_eq!(machine.state(), StateRecord::Running);
    let _ = machine.on(now, Event::Reported(report()));
    assert_eq!(machine.state(), StateRecord::Ready);
    machine
}

fn running(now: Instant) -> Machine {
    let mut machine = Machine::stopped(Restart::No, true, String::new());
    let _ = machine.on(now, Event::StartAsked);
    let _ = machine.on(now, Event::Greeted);
    let _ = machine.on(now, Event::Resumed);
    machine
}

fn exited() -> Event {
    Event::Exited {
        how: "signal 9".to_owned(),
        clean: false,
    }
}

const GRACE: Duration = Duration::from_secs(30);

#[test]
fn a_machine_that_ignores_powerdown_is_asked_to_quit_and_then_killed() {
    let start = Instant::now();
    let mut machine = ready(start, Restart::OnFailure);
    let effects = machine.on(start, Event::StopAsked { grace: GRACE });
    assert_eq!(
        effects,
        [Effect::Powerdown, Effect::Changed(Change::Stopping)]
    );
    assert_eq!(machine.on(start + GRACE / 2, Event::Tick), []);
    let quit = start + GRACE;
    assert_eq!(
        machine.on(quit, Event::Tick),
        [Effect::Quit, Effect::Changed(Change::Stopping)]
    );
    let kill = quit + QUIT_DEADLINE;
    assert_eq!(
        machine.on(kill, Event::Tick),
        [Effect::Kill, Effect::Changed(Change::Stopping)]
    );
    assert_eq!(
        machine.on(kill, exited()),
        [Effect::Release, Effect::Changed(Change::Stopped)]
    );
    assert_eq!(machine.state(), StateRecord::Stopped);
}

#[test]
fn what_is_wrong_with_qmp_is_told_and_a_death_by_its_own_words() {
    let now = Instant::now();
    let lost = Event::QmpLost {
        why: "closed".to_owned(),
    };
    let broken = Event::QmpBroken {
        why: "it greeted with `220`".to_owned(),
    };
    for (event, want) in [
        (lost, "signal 9"),
        (broken, "QMP does not work: it greeted with `220`"),
    ] {
        let mut machine = ready(now, Restart::No);
        assert_eq!(machine.on(now, event)[0], Effect::Kill);
        let _ = machine.on(now, exited());
        assert_eq!(machine.reason(), want);
    }
}

#[test]
fn a_qemu_that_was_found_and_cannot_be_spoken_to_is_told_and_not_killed() {
    let now = Instant::now();
    for event in [
        Event::QmpLost {
            why: "no such file".to_owned(),
        },
        Event::QmpBroken {
            why: "no such file".to_owned(),
        },
    ] {
        let mut machine = Machine::adopting(Restart::OnFailure, true, None, now);
        assert_eq!(
            machine.on(now, event),
            [Effect::Changed(Change::Unresponsive)]
        );
        assert_eq!(machine.state(), StateRecord::Unresponsive);
        assert!(machine.reason().contains("no such file"));
        // Its user may end it.
        let effects = machine.on(now, Event::StopAsked { grace: GRACE });
        assert_eq!(effects[0], Effect::Kill);
    }
}

#[test]
fn a_machine_whose_resume_was_lost_among_events_runs_all_the_same() {
    let now = Instant::now();
    let mut machine = Machine::stopped(Restart::No, true, String::new());
    let _ = machine.on(now, Event::StartAsked);
    let _ = machine.on(now, Event::Greeted);
    let status = RunStatus::Paused;
    assert_eq!(machine.on(now, Event::Halted { status }), []);
    let status = RunStatus::Running;
    assert_eq!(
        machine.on(now, Event::Halted { status }),
        [Effect::Changed(Change::Running)]
    );
}

#[test]
fn a_guest_that_obeys_is_not_waited_for_any_longer() {
    let now = Instant::now();
    let mut machine = ready(now, Restart::OnFailure);
    let _ = machine.on(now, Event::StopAsked { grace: GRACE });
    let effects = machine.on(
        now,
        Event::Halted {
            status: RunStatus::Shutdown,
        },
    );
    assert_eq!(effects, [Effect::Quit, Effect::Changed(Change::Stopping)]);
}

#[test]
fn a_report_that_comes_before_qmp_to_an_adopter_is_kept() {
    let now = Instant::now();
    let mut machine = Machine::adopting(Restart::OnFailure, true, None, now);
    let _ = machine.on(now, Event::Reported(report()));
    let _ = machine.on(
        now,
        Event::Adopted {
            status: RunStatus::Running,
            report: None,
        },
    );
    assert_eq!(machine.state(), StateRecord::Ready);
}

#[test]
fn a_ready_machine_that_dies_is_started_again_with_growing_pauses() {
    let mut now = Instant::now();
    let mut machine = ready(now, Restart::OnFailure);
    for pause in [1, 2, 4, 8] {
        let _ = machine.on(now, exited());
        assert_eq!(machine.state(), StateRecord::Crashed);
        let due = machine.deadline().unwrap();
        assert_eq!(due, now + Duration::from_secs(pause));
        now = due;
        assert_eq!(
            machine.on(now, Event::Tick),
            [Effect::Launch, Effect::Changed(Change::Starting)]
        );
        let _ = machine.on(now, Event::Greeted);
        let _ = machine.on(now, Event::Resumed);
        // It runs again but never gets as far as to report; pretend that it was up.
        machine.came_up = true;
    }
}

#[test]
fn a_machine_that_never_came_up_is_not_started_again() {
    let now = Instant::now();
    let mut machine = Machine::stopped(Restart::Always, true, String::new());
    let _ = machine.on(now, Event::StartAsked);
    let _ = machine.on(now, Event::Greeted);
    let _ = machine.on(now, Event::Resumed);
    let _ = machine.on(now, exited());
    assert_eq!(machine.state(), StateRecord::Crashed);
    assert_eq!(machine.deadline(), None);
    assert_eq!(machine.reason(), "signal 9");
}

#[test]
fn a_guest_that_powers_off_is_stopped_and_not_crashed() {
    let now = Instant::now();
    let mut machine = ready(now, Restart::OnFailure);
    let _ = machine.on(
        now,
        Event::Halted {
            status: RunStatus::Shutdown,
        },
    );
    let _ = machine.on(
        now,
        Event::Exited {
            how: "status 0".to_owned(),
            clean: true,
        },
    );
    assert_eq!(machine.state(), StateRecord::Stopped);
    assert_eq!(machine.reason(), "powered off by the guest");
}

#[test]
fn the_panic_line_of_the_console_is_in_the_reason() {
    let now = Instant::now();
    let mut machine = ready(now, Restart::No);
    let _ = machine.on(
        now,
        Event::PanicLine {
            line: "Kernel panic - not syncing: sysrq".to_owned(),
        },
    );
    let _ = machine.on(
        now,
        Event::Halted {
            status: RunStatus::Panicked,
        },
    );
    let _ = machine.on(now, exited());
    assert_eq!(machine.state(), StateRecord::Crashed);
    assert_eq!(
        machine.reason(),
        "the guest's kernel panicked: Kernel panic - not syncing: sysrq"
    );
}

#[test]
fn a_full_host_disk_pauses_and_resume_goes_on() {
    let now = Instant::now();
    let mut machine = ready(now, Restart::No);
    let _ = machine.on(
        now,
        Event::Halted {
            status: RunStatus::IoError,
        },
    );
    assert_eq!(machine.state(), StateRecord::Paused);
    assert_eq!(machine.reason(), "host disk full");
    let _ = machine.on(now, Event::Resumed);
    assert_eq!(machine.state(), StateRecord::Ready);
}

#[test]
fn a_reset_takes_back_the_report_and_a_loop_of_resets_is_a_failure() {
    let now = Instant::now();
    let mut machine = ready(now, Restart::No);
    let _ = machine.on(now, Event::Reset);
    assert_eq!(machine.state(), StateRecord::Running);
    for _ in 0..RESET_LIMIT {
        assert_eq!(machine.state(), StateRecord::Running);
        let _ = machine.on(now, Event::Reset);
    }
    let _ = machine.on(now, Event::Reset);
    assert_eq!(machine.state(), StateRecord::Failed);
}

#[test]
fn a_verdict_outlives_the_supervisor_that_found_it() {
    let now = Instant::now();
    let gave_up = Some("Ignition failed".to_owned());
    let mut machine = Machine::adopting(Restart::No, true, gave_up, now);
    let adopted = Event::Adopted {
        status: RunStatus::Running,
        report: None,
    };
    drop(machine.on(now, adopted));
    assert_eq!(machine.state(), StateRecord::Failed);
    assert_eq!(machine.reason(), "Ignition failed");
}

#[test]
fn a_start_during_a_stop_is_done_after_it() {
    let now = Instant::now();
    let mut machine = ready(now, Restart::No);
    let _ = machine.on(now, Event::StopAsked { grace: GRACE });
    assert_eq!(machine.on(now, Event::StartAsked), []);
    let effects = machine.on(now, exited());
    assert!(effects.contains(&Effect::Launch), "{effects:?}");
    assert_eq!(machine.state(), StateRecord::Starting);
}

#[test]
fn a_qemu_that_was_found_stopped_is_unresponsive_and_not_killed() {
    let now = Instant::now();
    let mut machine = Machine::adopting(Restart::OnFailure, true, None, now);
    let due = machine.deadline().unwrap();
    assert_eq!(
        machine.on(due, Event::Tick),
        [Effect::Changed(Change::Unresponsive)]
    );
    assert_eq!(machine.state(), StateRecord::Unresponsive);
    assert_eq!(machine.deadline(), None);
    let met = Event::Adopted {
        status: RunStatus::Running,
        report: Some(report()),
    };
    let _ = machine.on(due, met);
    assert_eq!(machine.state(), StateRecord::Ready);
}

mod property {
    use super::*;
    use proptest::prelude::{Just, Strategy, any, prop_oneof};
    use proptest::{collection, proptest};

    fn status() -> impl Strategy<Value = RunStatus> {
        prop_oneof![
            Just(RunStatus::Paused),
            Just(RunStatus::Running),
            Just(RunStatus::Shutdown),
            Just(RunStatus::Panicked),
            Just(RunStatus::IoError),
            Just(RunStatus::Broken),
        ]
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::StartAsked),
            (0u64..60).prop_map(|s| Event::StopAsked {
                grace: Duration::from_secs(s)
            }),
            Just(Event::KillAsked),
            Just(Event::Greeted),
            status().prop_map(|status| Event::Adopted {
                status,
                report: None
            }),
            Just(Event::QmpLost {
                why: "q".to_owned()
            }),
            Just(Event::QmpBroken {
                why: "q".to_owned()
            }),
            Just(Event::Resumed),
            status().prop_map(|status| Event::Halted { status }),
            Just(Event::Reset),
            Just(Event::Reported(report())),
            Just(Event::AddressSeen),
            Just(Event::PhaseSeen(Phase::Kernel)),
            Just(Event::GaveUp {
                line: "g".to_owned()
            }),
            Just(Event::GaveUpUntold {
                line: "u".to_owned()
            }),
            Just(Event::Explained {
                line: "x".to_owned()
            }),
            Just(Event::PanicLine {
                line: "p".to_owned()
            }),
            any::<bool>().prop_map(|answered| Event::Beat { answered }),
            any::<bool>().prop_map(|clean| Event::Exited {
                how: "e".to_owned(),
                clean
            }),
            Just(Event::Tick),
        ]
    }

    proptest! {
        /// Whatever happens: a launch comes only when there is no process, the waits that
        /// end by themselves have deadlines, and a kill always leads to the end.
        #[test]
        fn no_sequence_leaves_the_diagram(events in collection::vec((0u64..40, event()), 0..60)) {
            let mut now = Instant::now();
            let mut machine = Machine::stopped(Restart::Always, true, String::new());
            let mut process = false;
            for (seconds, event) in events {
                now += Duration::from_secs(seconds);
                // Only what can happen: without a process none exits.
                let gone = matches!(event, Event::Exited { .. });
                if gone && !process {
                    continue;
                }
                if gone {
                    process = false;
                }
                for effect in machine.on(now, event) {
                    match effect {
                        Effect::Launch => {
                            assert!(!process, "two processes of one machine");
                            process = true;
                        }
                        Effect::Kill | Effect::Quit | Effect::Powerdown | Effect::Continue => {
                            assert!(process, "{effect:?} without a process");
                        }
                        Effect::Release => assert!(!process, "released while it lives"),
                        Effect::Changed(_) => {}
                    }
                }
                assert_eq!(machine.is_alive(), process);
                if matches!(machine.state(), StateRecord::Starting) {
                    assert!(machine.deadline().is_some());
                }
            }
            let _ = machine.on(now, Event::KillAsked);
            if process {
                let _ = machine.on(now, Event::Exited { how: String::new(), clean: false });
            }
            assert!(!machine.is_alive() && !machine.is_wanted());
        }
    }
}

#[test]
fn the_journal_says_why_ignition_failed_or_the_console_does_after_a_while() {
    let untold = |line: &str| Event::GaveUpUntold {
        line: line.to_owned(),
    };
    let explained = |line: &str| Event::Explained {
        line: line.to_owned(),
    };
    let now = Instant::now();
    let mut machine = running(now);
    assert_eq!(machine.on(now, untold("a stage failed")), []);
    assert_eq!(machine.state(), StateRecord::Running);
    let due = machine.deadline().unwrap();
    assert_eq!(due, now + EXPLANATION_DEADLINE);
    let shell = Event::GaveUp {
        line: "a shell".to_owned(),
    };
    assert_eq!(machine.on(now, shell), []);

    let mut told = machine.clone();
    assert_eq!(
        told.on(now, explained("why")),
        [Effect::Changed(Change::Failed)]
    );
    assert_eq!((told.reason().as_str(), told.deadline()), ("why", None));
    assert_eq!(told.on(due, Event::Tick), []);
    assert_eq!(told.on(due, explained("another why")), []);

    assert_eq!(
        machine.on(due, Event::Tick),
        [Effect::Changed(Change::Failed)]
    );
    assert_eq!(machine.reason(), "a stage failed");
    // Late is better than never.
    assert_eq!(
        machine.on(due, explained("why")),
        [Effect::Changed(Change::Failed)]
    );
    assert_eq!(machine.reason(), "why");

    let mut ready = running(now);
    let _ = ready.on(now, Event::Reported(report()));
    let told = ready.on(now, explained("a lie"));
    assert_eq!(told, []);
    assert_eq!(ready.state(), StateRecord::Ready);
}

#[test]
fn a_silent_guest_that_shows_no_more_than_its_firmware_is_not_waited_for() {
    let now = Instant::now();
    let silent = || {
        let mut machine = Machine::stopped(Restart::No, false, String::new());
        for event in [Event::StartAsked, Event::Greeted, Event::Resumed] {
            let _ = machine.on(now, event);
        }
        machine
    };
    let long = GRACE.max(UNHEARD_GRACE * 2);
    let waits = |mut machine: Machine| {
        let _ = machine.on(now, Event::StopAsked { grace: long });
        machine.deadline().unwrap() - now
    };
    let mut machine = silent();
    let _ = machine.on(now, Event::PhaseSeen(Phase::Firmware));
    assert_eq!(waits(machine.clone()), UNHEARD_GRACE);
    // What is behind the firmware may have said nothing on the console, and be at work.
    let _ = machine.on(now, Event::AddressSeen);
    assert_eq!(waits(machine), long);
    let mut machine = silent();
    let _ = machine.on(now, Event::PhaseSeen(Phase::Kernel));
    assert_eq!(waits(machine), long);
    assert_eq!(waits(silent()), long);
}
