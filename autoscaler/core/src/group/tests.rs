use proptest::prelude::*;

use super::*;

fn at(seconds: u64) -> Time {
    Time::from_secs(1_700_000_000 + seconds)
}

/// `name group needs,needs`; a name in parentheses is a worker's.
fn declare(lines: &[&str]) -> Vec<Declared> {
    let one = |line: &&str| {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let list = |word: Option<&str>| -> Vec<String> {
            let word = word.filter(|word| *word != "-");
            word.iter()
                .flat_map(|word| word.split(',').map(str::to_owned))
                .collect()
        };
        Declared {
            names: vec![name.trim_matches(['(', ')']).to_owned()],
            reachable: !name.starts_with('('),
            group: list(words.next()).pop(),
            depends_on: list(words.next()),
        }
    };
    lines.iter().map(one).collect()
}

/// A letter for each member: `w`anted and without pods, `W`anted with a ready pod, `b`oth with a pod that starts,
/// `a`sleep, `R`eady and idle, `s`tarting and idle.
fn stand(letters: &str) -> Vec<Standing> {
    let one = |letter| {
        let (wanted, replicas, ready) = match letter {
            'w' => (true, 0, 0),
            'b' => (true, 1, 0),
            'W' => (true, 1, 1),
            's' => (false, 1, 0),
            'R' => (false, 1, 1),
            _ => (false, 0, 0),
        };
        Standing {
            wanted,
            replicas,
            ready,
        }
    };
    letters.chars().map(one).collect()
}

/// What a company comes to, in a few words.
fn say(company: &Company) -> String {
    match company {
        Company::Free => "free".to_owned(),
        Company::Follows { note } => format!("rises: {note}"),
        Company::Kept { why } => format!("kept: {why}"),
        Company::Awake { why } => why.clone(),
        Company::Waits { why, .. } => why.clone(),
    }
}

#[test]
fn who_rises_for_whom_and_after_whom() {
    let chain = ["web - api", "api - db", "db"];
    let group = ["web p", "api p", "(worker) p", "other"];
    let rows: [(&str, &[&str], &str, &[&str]); 12] = [
        ("all asleep", &chain, "aaa", &["free"; 3]),
        (
            "the last of a chain first",
            &chain,
            "waa",
            &[
                "waits for api (0 of 1 ready)",
                "woken for web, which depends on it; waits for db (0 of 1 ready)",
                "woken for web, through api, which depends on it",
            ],
        ),
        (
            "then the next",
            &chain,
            "waW",
            &[
                "waits for api (0 of 1 ready)",
                "woken for web, which depends on it",
                "awake for web, through api, which depends on it",
            ],
        ),
        (
            "then the first",
            &chain,
            "wRR",
            &[
                "free",
                "awake for web, which depends on it",
                "awake for web, through api, which depends on it",
            ],
        ),
        ("a dependency wakes nobody", &chain, "aaw", &["free"; 3]),
        (
            "what others depend on sleeps after them",
            &chain,
            "RRR",
            &[
                "free",
                "kept: web depends on it and still has pods",
                "kept: api depends on it and still has pods",
            ],
        ),
        ("one after the other", &chain, "aaR", &["free", "free", "free"]),
        (
            "a group at once, its worker too",
            &group,
            "awaa",
            &[
                "woken for api of group p",
                "free",
                "woken for api of group p",
                "free",
            ],
        ),
        (
            "two that are wanted are awake for each other",
            &group,
            "WWRa",
            &[
                "awake for api of group p",
                "awake for web of group p",
                "awake for web of group p",
                "free",
            ],
        ),
        ("a group sleeps together", &group, "RRRa", &["free"; 4]),
        (
            "a worker that nothing can wake stays",
            &["(worker) p", "(other) p"],
            "Ra",
            &["kept: group p has no Service that could wake it"; 2],
        ),
        (
            "a dependency's group comes along",
            &["web - db", "db p", "(backup) p"],
            "waa",
            &[
                "waits for db (0 of 1 ready)",
                "woken for web, which depends on it",
                "woken for web of group p",
            ],
        ),
    ];
    for (what, members, standing, want) in rows {
        let graph = Graph::new(&declare(members));
        assert_eq!(graph.troubles(), [], "{what}");
        let companies = graph.step(at(0), &stand(standing), &mut Waiting::new());
        assert_eq!(companies.iter().map(say).collect::<Vec<_>>(), want, "{what}");
    }
}

#[test]
fn a_wait_ends_after_a_while_counted_from_the_first_wish() {
    let graph = Graph::new(&declare(&["web - db", "db"]));
    let mut waiting = Waiting::new();
    let first = graph.step(at(0), &stand("wa"), &mut waiting);
    let until = at(PATIENCE.as_secs());
    assert!(
        matches!(&first[0], Company::Waits { until: end, .. } if *end == until),
        "{first:?}"
    );
    for (seconds, standing, want) in [
        (5, "ws", "waits for db (0 of 1 ready)"),
        (19, "ws", "waits for db (0 of 1 ready)"),
        (20, "ws", "rises: waited 20 s in vain for db (0 of 1 ready)"),
        (25, "ws", "rises: waited 20 s in vain for db (0 of 1 ready)"),
    ] {
        let companies = graph.step(at(seconds), &stand(standing), &mut waiting);
        assert_eq!(say(&companies[0]), want, "{seconds}");
    }
    assert_eq!(say(&graph.step(at(26), &stand("bs"), &mut waiting)[0]), "free");
    assert_eq!(say(&graph.step(at(90), &stand("aa"), &mut waiting)[0]), "free");
    graph.step(at(99), &stand("wa"), &mut waiting);
    let companies = graph.step(at(102), &stand("wR"), &mut waiting);
    assert_eq!(
        say(&companies[0]),
        "rises: waited 3 s for what it depends on",
        "a new wish, a new wait"
    );
}

#[test]
fn troubles_are_named_and_stop_nothing() {
    let path = |names: &str| Trouble::Circle {
        path: names.split(' ').map(str::to_owned).collect(),
    };
    type Row<'a> = (&'a str, &'a [&'a str], Vec<(usize, Trouble)>);
    let rows: [Row<'_>; 4] = [
        (
            "missing",
            &["web - db,api", "api"],
            vec![(0, Trouble::Missing { name: "db".into() })],
        ),
        (
            "a circle, and one before it",
            &["web - api", "api - db", "db - api"],
            vec![(1, path("api db api")), (2, path("db api db"))],
        ),
        ("on itself", &["web - web"], vec![(0, path("web web"))]),
        (
            "of another group",
            &["web a db", "db b"],
            vec![(
                0,
                Trouble::OtherGroup {
                    name: "db".into(),
                    theirs: "b".into(),
                    ours: "a".into(),
                },
            )],
        ),
    ];
    for (what, members, want) in rows {
        let graph = Graph::new(&declare(members));
        assert_eq!(graph.troubles(), want, "{what}");
        let mut standing = vec![Standing::default(); members.len()];
        standing[0].wanted = true;
        let companies = graph.step(at(0), &standing, &mut Waiting::new());
        let in_circle = |member| {
            want.iter()
                .any(|(of, trouble)| *of == member && matches!(trouble, Trouble::Circle { .. }))
        };
        for (member, company) in companies.iter().enumerate() {
            let waits = matches!(company, Company::Waits { .. });
            assert!(!(waits && in_circle(member)), "{what}: {companies:?}");
        }
    }
    let circle = Graph::new(&declare(&["api - db", "db - api"]));
    let idle = circle.step(at(0), &stand("RR"), &mut Waiting::new());
    assert_eq!(
        idle,
        [Company::Free, Company::Free],
        "a circle does not keep itself awake"
    );
}

#[test]
fn a_name_may_be_any_of_a_members_names() {
    let mut declared = declare(&["web - db-read", "db"]);
    declared[1].names.push("db-read".into());
    let graph = Graph::new(&declared);
    assert_eq!(graph.troubles(), []);
    let companies = graph.step(at(0), &stand("Wa"), &mut Waiting::new());
    assert_eq!(say(&companies[1]), "woken for web, which depends on it");
}

/// Up to seven members in up to two groups, with any dependencies.
fn worlds() -> impl Strategy<Value = Vec<Declared>> {
    let member = (0_u8..4, prop::collection::vec(0_usize..7, 0..3), any::<bool>());
    prop::collection::vec(member, 1..7).prop_map(|members| {
        let count = members.len();
        let one = |(number, (group, needs, reachable)): (usize, (u8, Vec<usize>, bool))| Declared {
            names: vec![format!("m{number}")],
            group: (group < 2).then(|| format!("g{group}")),
            depends_on: needs
                .into_iter()
                .map(|need| format!("m{}", need % count))
                .collect(),
            reachable,
        };
        members.into_iter().enumerate().map(one).collect()
    })
}

proptest! {
    /// Played out with pods that become ready one step after they are asked for: from one wish everyone that hangs
    /// together with it gets a pod, and without a wish everyone that anything could wake loses it again.
    #[test]
    fn everyone_rises_and_everyone_sleeps_in_the_end(
        mut declared in worlds(), wisher in 0_usize..7, broken in prop::option::of(0_usize..7),
    ) {
        let wisher = wisher % declared.len();
        declared[wisher].reachable = true;
        let graph = Graph::new(&declared);
        let mut standing = vec![Standing::default(); declared.len()];
        let mut waiting = Waiting::new();
        standing[wisher].wanted = true;
        let closure = graph.closure(|member| member == wisher);
        for second in 0..60 {
            for (member, it) in standing.iter_mut().enumerate() {
                it.ready = if broken == Some(member) { 0 } else { it.replicas };
            }
            let before = standing.clone();
            for (member, company) in graph.step(at(second), &before, &mut waiting).into_iter().enumerate() {
                let it = &mut standing[member];
                match company {
                    Company::Awake { .. } | Company::Follows { .. } => it.replicas = 1,
                    Company::Free if it.wanted => it.replicas = 1,
                    Company::Waits { until, .. } => {
                        prop_assert_eq!(it.replicas, 0);
                        prop_assert!(until > at(second));
                        let late = graph.members[member].first.iter().any(|need| before[*need].ready == 0);
                        prop_assert!(late, "waits for somebody");
                    }
                    _ => {}
                }
            }
        }
        for (member, labels) in closure.iter().enumerate() {
            prop_assert_eq!(standing[member].replicas > 0, !labels.is_empty(), "m{}", member);
        }
        standing[wisher].wanted = false;
        for second in 60..80 {
            let before = standing.clone();
            for (member, company) in graph.step(at(second), &before, &mut waiting).into_iter().enumerate() {
                if company == Company::Free {
                    let needed = graph.members[member].after.iter().any(|after| before[*after].replicas > 0);
                    prop_assert!(!needed, "m{} goes before what depends on it", member);
                    standing[member].replicas = 0;
                }
            }
        }
        for (member, it) in standing.iter().enumerate() {
            prop_assert!(it.replicas == 0 || !graph.members[member].wakeable, "m{} stays for ever", member);
        }
        prop_assert!(waiting.is_empty());
    }
}
