//! The graph itself: names into members, circles, and the closure.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::{Declared, Graph, Label, Node, Trouble};

impl Graph {
    /// Reads what users have written. Of two members with one name the first has it.
    #[must_use]
    pub fn new(declared: &[Declared]) -> Self {
        let mut by_name: HashMap<&str, usize> = HashMap::new();
        for (member, each) in declared.iter().enumerate() {
            for name in &each.names {
                by_name.entry(name).or_insert(member);
            }
        }
        let mut graph = Self::default();
        graph.file(declared);
        for (member, each) in declared.iter().enumerate() {
            for name in &each.depends_on {
                match by_name.get(name.as_str()) {
                    Some(need) => graph.need(declared, member, *need, name),
                    None => {
                        let name = name.clone();
                        graph.troubles.push((member, Trouble::Missing { name }));
                    }
                }
            }
        }
        graph.order();
        let seeds: Vec<bool> = declared.iter().map(|each| each.reachable).collect();
        let labels = graph.closure(|member| seeds[member]);
        for (node, labels) in graph.members.iter_mut().zip(labels) {
            node.wakeable = !labels.is_empty();
        }
        graph
    }

    /// Members and groups, without dependencies.
    fn file(&mut self, declared: &[Declared]) {
        let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (member, each) in declared.iter().enumerate() {
            if let Some(group) = &each.group {
                groups.entry(group).or_default().push(member);
            }
            self.members.push(Node {
                name: each.names.first().cloned().unwrap_or_default(),
                ..Node::default()
            });
        }
        for (name, members) in groups {
            for member in &members {
                self.members[*member].group = Some(self.groups.len());
            }
            self.groups.push((name.to_owned(), members));
        }
    }

    fn need(&mut self, declared: &[Declared], member: usize, need: usize, name: &str) {
        if !self.members[member].needs.contains(&need) {
            self.members[member].needs.push(need);
        }
        if let (Some(ours), Some(theirs)) = (&declared[member].group, &declared[need].group)
            && ours != theirs
        {
            let (name, theirs, ours) = (name.to_owned(), theirs.clone(), ours.clone());
            self.troubles
                .push((member, Trouble::OtherGroup { name, theirs, ours }));
        }
    }

    /// Who comes before whom; members of a circle have no order among them.
    fn order(&mut self) {
        let circle = self.circles();
        for member in 0..self.members.len() {
            let needs = self.members[member].needs.clone();
            let (same, first): (Vec<usize>, Vec<usize>) = needs
                .into_iter()
                .partition(|need| circle[*need] == circle[member]);
            for need in &first {
                self.members[*need].after.push(member);
            }
            self.members[member].first = first;
            if !same.is_empty() {
                let path = self.way_back(member, &circle);
                self.troubles.push((member, Trouble::Circle { path }));
            }
        }
    }

    /// The strongly connected component of each member (Kosaraju, with stacks of our own: a chain may be long).
    fn circles(&self) -> Vec<usize> {
        let count = self.members.len();
        let mut finished = Vec::with_capacity(count);
        let mut seen = vec![false; count];
        for start in 0..count {
            let mut stack = vec![(start, 0)];
            if std::mem::replace(&mut seen[start], true) {
                continue;
            }
            while let Some((member, next)) = stack.pop() {
                match self.members[member].needs.get(next) {
                    Some(need) => {
                        stack.push((member, next + 1));
                        if !std::mem::replace(&mut seen[*need], true) {
                            stack.push((*need, 0));
                        }
                    }
                    None => finished.push(member),
                }
            }
        }
        let mut needed_by = vec![Vec::new(); count];
        for (member, node) in self.members.iter().enumerate() {
            for need in &node.needs {
                needed_by[*need].push(member);
            }
        }
        let mut circle = vec![usize::MAX; count];
        for root in finished.into_iter().rev() {
            let mut stack = vec![root];
            while let Some(member) = stack.pop() {
                if circle[member] == usize::MAX {
                    circle[member] = root;
                    stack.extend(&needed_by[member]);
                }
            }
        }
        circle
    }

    /// The shortest way from a member through its circle back to itself, by name.
    fn way_back(&self, member: usize, circle: &[usize]) -> Vec<String> {
        let mut from: HashMap<usize, usize> = HashMap::new();
        let mut queue = VecDeque::from([member]);
        while let Some(at) = queue.pop_front() {
            for need in &self.members[at].needs {
                if *need == member {
                    let mut path = vec![member];
                    let mut step = Some(at);
                    while let Some(at) = step.filter(|at| *at != member) {
                        path.push(at);
                        step = from.get(&at).copied();
                    }
                    path.push(member);
                    path.reverse();
                    return path.iter().map(|at| self.members[*at].name.clone()).collect();
                }
                if circle[*need] == circle[member] && !from.contains_key(need) {
                    from.insert(*need, at);
                    queue.push_back(*need);
                }
            }
        }
        Vec::new()
    }

    /// Who is awake when `seeds` are: closed under groups and needs. Of each member, up to two seeds that lead to it by a
    /// shortest way; two, so that one that is a seed itself still shows whether another one needs it.
    pub(super) fn closure(&self, seed: impl Fn(usize) -> bool) -> Vec<Vec<Label>> {
        const KEPT: usize = 2;
        let mut labels: Vec<Vec<Label>> = vec![Vec::new(); self.members.len()];
        let mut of_group: Vec<Vec<usize>> = vec![Vec::new(); self.groups.len()];
        let mut queue: VecDeque<(usize, Label)> = (0..self.members.len())
            .filter(|member| seed(*member))
            .map(|seed| (seed, Label { seed, through: None }))
            .collect();
        while let Some((member, label)) = queue.pop_front() {
            let known = &mut labels[member];
            if known.len() >= KEPT || known.iter().any(|old| old.seed == label.seed) {
                continue;
            }
            known.push(label);
            let node = &self.members[member];
            let through = Some(member);
            queue.extend(node.needs.iter().map(|need| (*need, Label { through, ..label })));
            let Some(group) = node.group else { continue };
            let known = &mut of_group[group];
            if known.len() < KEPT && !known.contains(&label.seed) {
                known.push(label.seed);
                let mates = self.groups[group].1.iter().filter(|mate| **mate != member);
                queue.extend(mates.map(|mate| {
                    (
                        *mate,
                        Label {
                            through: None,
                            ..label
                        },
                    )
                }));
            }
        }
        labels
    }
}
