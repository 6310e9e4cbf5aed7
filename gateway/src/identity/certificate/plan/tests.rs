use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + 20_000 * DAY
}

fn names(service: &str) -> Vec<String> {
    vec![format!("{service}.portico-system.svc"), format!("{service}.portico-system.svc.cluster.local")]
}

fn made() -> Held {
    Held::make(&names("gateway"), start()).expect("makes")
}

/// What is held once an authority was announced and seen.
fn announced(now: SystemTime) -> Held {
    let held = take(Step::Announce, Some(&made()), &names("gateway"), now).expect("makes");
    take(Step::Note, Some(&held), &names("gateway"), now).expect("notes")
}

#[test]
fn what_is_due_when() {
    let held = made();
    let five_years = 5 * 365 * DAY;
    // The certificate of the port is made anew here, so that only the authority is of age.
    let later = |age: Duration| {
        let serving = held.signer.issue(&names("gateway"), start() + age).expect("signs");
        Held { serving, ..held.clone() }
    };
    let unseen = Held { next: announced(start()).next.map(|next| Next { published: None, ..next }), ..held.clone() };
    let seen = announced(start());
    let former = vec![(seen.bundle(), start() + 10 * DAY)];
    let cases = [
        ("nothing is there", Duration::ZERO, None, true, Step::Create),
        ("new", Duration::ZERO, Some(&held), true, Step::Wait(start() + 20 * DAY)),
        ("new, not published", Duration::ZERO, Some(&held), false, Step::Wait(start() + 20 * DAY)),
        ("a third of the life is left", 20 * DAY, Some(&held), true, Step::Issue),
        ("not published, but about to end", 29 * DAY, Some(&held), false, Step::Issue),
        ("long over", 400 * DAY, Some(&held), true, Step::Issue),
        (
            "a year and a day before the authority ends",
            five_years - 366 * DAY,
            Some(&later(five_years - 366 * DAY)),
            true,
            Step::Wait(start() + five_years - 365 * DAY),
        ),
        (
            "a year before the authority ends",
            five_years - 365 * DAY,
            Some(&later(five_years - 365 * DAY)),
            true,
            Step::Announce,
        ),
        ("the authority is over", five_years, Some(&held), true, Step::Create),
        ("the next one is not published", HOUR, Some(&unseen), false, Step::Wait(start() + 20 * DAY)),
        ("the next one is published", HOUR, Some(&unseen), true, Step::Note),
        ("it was for an hour", HOUR, Some(&seen), true, Step::Wait(start() + DAY)),
        ("it was for a day", DAY, Some(&seen), true, Step::Succeed),
        ("a former one is over", 10 * DAY, Some(&Held { former, ..held.clone() }), true, Step::Prune),
    ];
    for (name, age, held, is_published, expected) in cases {
        assert_eq!(plan(start() + age, held, &names("gateway"), is_published), expected, "{name}");
    }
}

#[test]
fn nothing_is_signed_by_an_authority_that_agents_cannot_know() {
    let held = announced(start());
    assert_eq!(held.serving.facts.issuer, held.signer.facts.subject);
    let next = held.next.clone().expect("was announced").authority;
    assert!(held.bundle().contains(&next.certificate));
    let after = take(Step::Succeed, Some(&held), &names("gateway"), start() + DAY).expect("signs");
    assert_eq!(after.signer, next);
    assert_eq!(after.serving.facts.issuer, next.facts.subject);
    // Who has read the bundle last before or after the change trusts what is shown before and after it.
    for certificate in [&held.signer.certificate, &next.certificate] {
        assert!(held.bundle().contains(certificate) && after.bundle().contains(certificate));
    }
    let over = held.signer.facts.not_after;
    let after = take(Step::Prune, Some(&after), &names("gateway"), over).expect("prunes");
    assert_eq!(after.bundle(), next.certificate);
}

#[test]
fn other_names_are_added_and_replicas_with_different_ones_come_to_rest() {
    let (ours, theirs) = (names("gateway"), names("portico"));
    let mut held = made();
    let mut steps = 0;
    loop {
        let wanting = [&ours, &theirs].into_iter().find(|names| {
            let step = plan(start() + DAY, Some(&held), names, true);
            step == Step::Issue
        });
        let Some(names) = wanting else { break };
        held = take(Step::Issue, Some(&held), names, start() + DAY).expect("signs");
        steps += 1;
        assert!(steps < 5, "they replace each other's certificate for ever");
    }
    assert_eq!(held.serving.facts.names.len(), 4);
    // What nobody asks for any more goes with the next renewal.
    let renewed = take(Step::Issue, Some(&held), &ours, start() + 21 * DAY + DAY).expect("signs");
    assert_eq!(renewed.serving.facts.names, ours);
}

#[test]
fn what_is_held_is_the_same_after_it_was_written_and_read() {
    let mut held = take(Step::Succeed, Some(&announced(start())), &names("gateway"), start() + DAY).expect("signs");
    for step in [Step::Wait(start()), Step::Announce, Step::Note] {
        held = take(step, Some(&held), &names("gateway"), start() + 2 * DAY).expect("makes");
        let read = Held::read(&held.data()).expect("is whole");
        assert_eq!(read, held, "{step:?}");
    }
    for field in ["tls.crt", "tls.key", "ca.crt", "signer.crt", "signer.key", "next.key"] {
        let mut data = held.data();
        data.remove(field);
        let error = Held::read(&data).expect_err("is not whole").to_string();
        assert!(error.contains(field), "{error}");
    }
    let mut data = held.data();
    data.insert("signer.key".into(), k8s_openapi::ByteString(b"no key".to_vec()));
    assert!(Held::read(&data).is_err());
}

/// Ten years, an hour at a time, with a ConfigMap that cannot be written every other month: the port always shows a valid
/// certificate of an authority that whoever has read the ConfigMap within the last day trusts.
#[test]
fn for_ten_years_agents_trust_what_is_shown() {
    let names = names("gateway");
    let mut held: Option<Held> = None;
    let mut published = (String::new(), String::new());
    let mut successions = 0;
    for hour in 0..10 * 365 * 24 / 6 {
        let now = start() + HOUR * 6 * hour;
        let can_publish = (hour / (4 * 30)) % 2 == 0;
        loop {
            if let Some(held) = &held
                && can_publish
            {
                published.0 = held.bundle();
            }
            let is_published = held.as_ref().is_some_and(|held| held.bundle() == published.0);
            let step = plan(now, held.as_ref(), &names, is_published);
            if let Step::Wait(until) = step {
                assert!(until > now);
                break;
            }
            assert!(step != Step::Create || held.is_none(), "everything was made anew after {hour}");
            successions += usize::from(step == Step::Succeed);
            held = Some(take(step, held.as_ref(), &names, now).expect("makes"));
        }
        let held = held.as_ref().expect("was made");
        assert!(held.serving.facts.not_after > now && held.signer.facts.not_after > now);
        let signer = &held.signer.certificate;
        assert!(published.0.contains(signer), "agents that read now do not trust the port at {hour}");
        // Agents that were away for a day have read this.
        if hour % 4 == 0 {
            assert!(
                published.1.is_empty() || published.1.contains(signer),
                "agents of yesterday do not trust at {hour}"
            );
            published.1 = published.0.clone();
        }
    }
    assert_eq!(successions, 2);
}
