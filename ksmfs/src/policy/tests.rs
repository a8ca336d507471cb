use super::{Domain, Outside, Policy, PolicyError, Problem, Subject, SyntaxError};
use std::os::unix::fs::PermissionsExt;

fn policy(text: &str) -> Policy {
    text.parse().unwrap()
}

fn place(policy: &Policy, uid: u32, cgroup: &str, label: &str) -> Result<Domain, Outside> {
    let cgroup = (!cgroup.is_empty()).then_some(cgroup);
    policy.domain_of(Subject { uid, cgroup, label })
}

fn mistakes(text: &str) -> Vec<(usize, Problem)> {
    let errors = text.parse::<Policy>().unwrap_err();
    errors
        .into_iter()
        .map(|SyntaxError { line, problem }| (line, problem))
        .collect()
}

#[test]
fn without_a_word_a_domain_is_a_user_and_no_label_counts() {
    for policy in [
        Policy::default(),
        policy(""),
        policy("# nothing\n\n  # at all"),
    ] {
        assert_eq!(place(&policy, 7, "/a", ""), Ok(Domain::User(7)));
        assert_eq!(place(&policy, 0, "", ""), Ok(Domain::User(0)));
        assert_eq!(place(&policy, 7, "/a", "web"), Err(Outside::Label));
        assert!(!policy.asks_for_cgroups());
    }
}

#[test]
fn users_are_merged_only_where_it_says_so() {
    let policy = policy("merge uid 1000 uid 2000-2002 # two teams\nmerge uid 5-6");
    for uid in [1000, 2000, 2001, 2002] {
        assert_eq!(place(&policy, uid, "", ""), Ok(Domain::Merged(0)));
    }
    assert_eq!(place(&policy, 6, "", ""), Ok(Domain::Merged(1)));
    for uid in [0, 999, 1001, 1999, 2003] {
        assert_eq!(place(&policy, uid, "", ""), Ok(Domain::User(uid)));
    }
}

#[test]
fn users_are_divided_by_cgroup() {
    let policy = policy("domains cgroup\nmerge cgroup /shared");
    let in_cgroup = |uid, path: &str| Ok(Domain::Cgroup(uid, path.to_owned()));
    assert_eq!(place(&policy, 7, "/a", ""), in_cgroup(7, "/a"));
    assert_eq!(place(&policy, 7, "/a/b", ""), in_cgroup(7, "/a/b"));
    assert_eq!(place(&policy, 8, "/a", ""), in_cgroup(8, "/a"));
    assert_eq!(place(&policy, 7, "", ""), Err(Outside::NoCgroup));
    assert_eq!(place(&policy, 7, "/shared/x", ""), Ok(Domain::Merged(0)));
    assert_eq!(place(&policy, 8, "/shared", ""), Ok(Domain::Merged(0)));
    assert_eq!(place(&policy, 8, "/shared2", ""), in_cgroup(8, "/shared2"));
    assert!(policy.asks_for_cgroups());
}

#[test]
fn a_label_counts_only_for_those_who_may_have_it() {
    let policy = policy("domains none\nlabel web uid 33 cgroup /web\nlabel all any");
    let web = Ok(Domain::Label("web".to_owned()));
    assert_eq!(place(&policy, 33, "/", "web"), web);
    assert_eq!(place(&policy, 33, "", "web"), Err(Outside::NoCgroup));
    assert_eq!(place(&policy, 34, "/web/1", "web"), web);
    assert_eq!(place(&policy, 34, "/other", "web"), Err(Outside::Label));
    assert_eq!(
        place(&policy, 34, "/", "all"),
        Ok(Domain::Label("all".to_owned()))
    );
    assert_eq!(place(&policy, 33, "/", ""), Err(Outside::Never));
}

#[test]
fn never_outweighs_everything() {
    let policy = policy("never uid 0 cgroup /secret\nmerge any\nlabel x any");
    for label in ["", "x"] {
        assert_eq!(place(&policy, 0, "/", label), Err(Outside::Never));
        assert_eq!(place(&policy, 9, "/secret/a", label), Err(Outside::Never));
    }
    assert_eq!(place(&policy, 9, "/", ""), Ok(Domain::Merged(0)));
}

#[test]
fn the_root_of_all_cgroups_holds_them_all() {
    let policy = policy("merge cgroup /");
    assert_eq!(place(&policy, 1, "/", ""), Ok(Domain::Merged(0)));
    assert_eq!(place(&policy, 2, "/a/b", ""), Ok(Domain::Merged(0)));
    assert_eq!(place(&policy, 2, "", ""), Err(Outside::NoCgroup));
}

#[test]
fn every_mistake_is_found_with_its_line() {
    let text = "domains user\n\nmerg uid 1 uid 2\nmerge uid\nmerge uid 3-1\nnever\nlabel a/b any\ndomains none\n\
                merge uid 5\nmerge group wheel\nmerge cgroup a/b\nmerge cgroup /a/../b\ndomains\ndomains cgroup now\nlabel";
    let own = str::to_owned;
    let wanted = vec![
        (3, Problem::Statement(own("merg"))),
        (4, Problem::Missing("a uid")),
        (5, Problem::Uid(own("3-1"))),
        (6, Problem::Missing("any, uid or cgroup")),
        (7, Problem::Label(own("a/b"))),
        (8, Problem::Twice(1)),
        (9, Problem::Alone),
        (10, Problem::Who(own("group"))),
        (11, Problem::Cgroup(own("a/b"))),
        (12, Problem::Cgroup(own("/a/../b"))),
        (13, Problem::Missing("user, cgroup or none")),
        (14, Problem::Surplus(own("now"))),
        (15, Problem::Missing("a label")),
    ];
    assert_eq!(mistakes(text), wanted);
}

/// What fits no process would be obeyed by none, and what is cut short by too many.
#[test]
fn a_path_is_one_that_the_kernel_can_give() {
    for path in ["/.", "//a", "/a/./b", "/a//b", "/a/..", "//"] {
        let problem = Problem::Cgroup(path.to_owned());
        assert_eq!(mistakes(&format!("never cgroup {path}")), [(1, problem)]);
    }
    let policy = policy("merge cgroup /team#1 #team\nnever cgroup /vault/");
    assert_eq!(place(&policy, 1, "/team#1", ""), Ok(Domain::Merged(0)));
    assert_eq!(place(&policy, 1, "/team", ""), Ok(Domain::User(1)));
    assert_eq!(place(&policy, 1, "/vault/x", ""), Err(Outside::Never));
}

#[test]
fn nobody_can_be_in_two_domains() {
    let text =
        "merge uid 1-5 uid 9\nlabel a any\nmerge uid 20 uid 3-7\nlabel a uid 1\nmerge uid 6-8";
    let wanted = [
        (3, Problem::MergedTwice(3, 1)),
        (4, Problem::LabelTwice("a".to_owned(), 2)),
    ];
    assert_eq!(mistakes(text), wanted);
    assert_eq!(mistakes("never uid 4294967295").len(), 1);
}

#[test]
fn a_file_that_others_can_write_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy");
    std::fs::write(&path, "domains none\nnonsense\n").unwrap();
    let error = Policy::load(&path).unwrap_err().to_string();
    assert!(error.contains("policy:2: unknown statement"), "{error}");
    let mode = std::fs::Permissions::from_mode;
    std::fs::set_permissions(&path, mode(0o664)).unwrap();
    assert!(matches!(Policy::load(&path), Err(PolicyError::Unsafe(_))));
    std::fs::set_permissions(&path, mode(0o644)).unwrap();
    std::fs::write(&path, "domains none").unwrap();
    assert!(Policy::load(&path).is_ok());
    let missing = dir.path().join("missing");
    assert!(matches!(Policy::load(&missing), Err(PolicyError::Read(..))));
}
