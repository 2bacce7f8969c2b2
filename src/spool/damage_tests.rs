//! The spool's files after a crash at the worst moments, on a full disk, and with every kind of damage.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command as Program;

use metrics_exporter_prometheus::PrometheusBuilder;

use super::tests::{action, change, done, drain, open, patch, push, read_all, segments, waiting};
use super::*;

/// What `leadfold_spool_damaged_total` becomes while something is done on this thread.
fn counted<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let done = metrics::with_local_recorder(&recorder, work);
    let text = handle.render();
    let value = text.lines().find_map(|line| line.strip_prefix("leadfold_spool_damaged_total ")?.parse().ok());
    (done, value.unwrap_or(0))
}

/// What is in a directory but for the files that are always there.
fn files(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().expect("text")).filter(|name| name != "lock" && name != "cursor").collect();
    names.sort();
    names
}

/// A spool that was closed, with some records in one segment: its name and bytes, where each record ends, and the
/// cursor.
async fn one_segment(records: u64) -> (String, Vec<u8>, Vec<usize>, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path());
    push(&spool, 0..records).await;
    drop(spool);
    let path = segments(dir.path()).pop().expect("a segment");
    let bytes = std::fs::read(&path).expect("its bytes");
    let mut ends = Vec::new();
    while ends.last() != Some(&bytes.len()) {
        let at = ends.last().copied().unwrap_or(0);
        ends.push(at + record::header(&bytes[at..]).expect("a header").total());
    }
    let cursor = std::fs::read(dir.path().join("cursor")).expect("the cursor");
    let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    (name, bytes, ends, cursor)
}

/// All actions but one.
fn without(records: u64, missing: usize) -> Vec<u64> {
    (0..records).filter(|action| *action != missing as u64).collect()
}

/// Whether the damage is there when the spool is opened or comes later, before it is read; and whether the spool was
/// closed or killed before, so that its cursor does not say how many records there were.
#[tokio::test]
async fn each_damaged_byte_of_a_segment_costs_one_record() {
    const RECORDS: u64 = 4;
    let (name, bytes, ends, cursor) = one_segment(RECORDS).await;
    for at in 0..bytes.len() {
        let hit = ends.iter().position(|end| at < *end).expect("a record");
        let mut damaged = bytes.clone();
        // Each bit in its turn, and all of them.
        damaged[at] ^= if at % 9 == 8 { 0xFF } else { 1 << (at % 9) };
        for (was_closed, is_late) in [(true, false), (false, false), (true, true), (false, true)] {
            // What the cursor says matters at the end only: elsewhere one of the two will do.
            if hit + 1 < ends.len() && was_closed == (at % 2 == 0) {
                continue;
            }
            let case = format!("byte {at}, closed {was_closed}, late {is_late}");
            let dir = tempfile::tempdir().expect("a directory");
            if was_closed {
                std::fs::write(dir.path().join("cursor"), &cursor).expect("written");
            } else {
                drop(open(dir.path()));
            }
            let path = dir.path().join(&name);
            std::fs::write(&path, if is_late { &bytes } else { &damaged }).expect("written");
            let ((read, lost), counted) = counted(|| {
                let spool = open(dir.path());
                assert_eq!(spool.status().events, RECORDS, "{case}");
                if is_late {
                    std::fs::write(&path, &damaged).expect("written");
                }
                drain(&spool)
            });
            assert_eq!((read, lost, counted), (without(RECORDS, hit), 1, 1), "{case}");
            let evidence = Path::new(&name).with_extension("damaged");
            assert_eq!(files(dir.path()), [evidence.to_str().expect("a name")], "{case}");
            assert_eq!(std::fs::read(dir.path().join(evidence)).expect("the evidence"), damaged, "{case}");
        }
    }
}

#[tokio::test]
async fn a_dead_letter_of_a_damaged_record_has_its_bytes_and_can_be_named() {
    let (name, bytes, ends, _) = one_segment(4).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut damaged = bytes.clone();
    damaged[ends[1] - 2] ^= 1;
    damaged[ends[2]] ^= 1;
    std::fs::write(dir.path().join(&name), &damaged).expect("written");
    let spool = open(dir.path());
    let entries = read_all(&spool);
    let [_, body, _, header] = &entries[..] else { panic!("{entries:?}") };
    let (of_body, of_header) = (body.change.clone().expect_err("damaged"), header.change.clone().expect_err("damaged"));
    assert_eq!((&of_body.bytes[..], &of_header.bytes[..]), (&damaged[ends[0]..ends[1]], &damaged[ends[2]..]));
    assert_eq!((body.meta, header.meta), (Some(Meta::of(&change("lead", 1))), None));
    assert!(of_header.why.contains("from number 3 on") && of_header.why.contains(".damaged.log"), "{}", of_header.why);
    assert!(super::read(&of_body.bytes).expect_err("damaged").contains("damaged"));
    assert_eq!(super::read(&bytes[ends[0]..ends[1]]), Ok(change("lead", 1)));
}

/// Many records next to each other, in more than one way.
#[tokio::test]
async fn a_hole_costs_what_is_in_it() {
    const RECORDS: u64 = 200;
    let (name, bytes, ends, _) = one_segment(RECORDS).await;
    let (from, to) = (ends[99] + 20, ends[109] - 30);
    let zeroed = [&bytes[..from], &vec![0; to - from], &bytes[to..]].concat();
    let cut = [&bytes[..from], &bytes[to..]].concat();
    let inserted = [&bytes[..from], &vec![0xF5; 100_000], &bytes[from..]].concat();
    let between = [&bytes[..ends[99]], b"not a record", &bytes[ends[99]..]].concat();
    let without_some = [&bytes[..ends[99]], &bytes[ends[109]..]].concat();
    let twice = [&bytes[..ends[109]], &bytes[ends[99]..]].concat();
    for (case, damaged, lost) in [
        ("zeroed", zeroed, 100..110),
        ("cut", cut, 100..110),
        ("inserted into a record", inserted, 100..101),
        ("inserted between records", between, 0..0),
        ("whole records cut", without_some, 100..110),
        ("records twice", twice, 0..0),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join(&name), &damaged).expect("written");
        let ((read, missing), counted) = counted(|| drain(&open(dir.path())));
        let expected: Vec<u64> = (0..RECORDS).filter(|action| !lost.contains(action)).collect();
        assert!(read == expected, "{case}: {read:?}");
        assert_eq!((missing, counted), (lost.end - lost.start, lost.end - lost.start), "{case}");
        assert_eq!(files(dir.path()), [Path::new(&name).with_extension("damaged").to_str().expect("a name")], "{case}");
    }
}

/// 16 MiB of what looks like headers everywhere: it must not take time with the square of that.
#[tokio::test]
async fn a_segment_of_nothing_but_magic_words_is_scanned_in_one_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let (name, bytes, ..) = one_segment(2).await;
    std::fs::write(dir.path().join(&name), [&[0xF5, b'L', b'S', 0xFF].repeat(4 << 20), &bytes[..]].concat()).expect("written");
    let began = Instant::now();
    let spool = Spool::open(dir.path(), 1 << 30).expect("a spool");
    assert_eq!(waiting(&spool), [0, 1]);
    assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
}

#[tokio::test]
async fn a_restart_does_not_forget_that_a_segment_is_damaged() {
    let dir = tempfile::tempdir().expect("a directory");
    let (name, mut bytes, ends, _) = one_segment(3).await;
    bytes[ends[1] - 1] ^= 1;
    std::fs::write(dir.path().join(&name), &bytes).expect("written");
    let marked = name.replace(".log", ".damaged.log");
    let spool = open(dir.path());
    assert_eq!(files(dir.path()), [&*marked]);
    // Newer segments do not change that.
    push(&spool, 3..5).await;
    drop(spool);
    let spool = open(dir.path());
    done(&spool, 2).await;
    drop(spool);
    let (read, lost) = drain(&open(dir.path()));
    assert_eq!((read, lost), (vec![2, 3, 4, 999], 0), "the damaged one was done");
    assert_eq!(files(dir.path()), [name.replace(".log", ".damaged")]);
}

#[tokio::test]
async fn damage_in_the_segment_that_is_written_costs_one_record_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path());
    push(&spool, 0..3).await;
    let path = segments(dir.path()).pop().expect("a segment");
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("the segment");
    file.write_all_at(b"?", 9).expect("written");
    assert_eq!(read_all(&spool).iter().map(action).collect::<Vec<_>>(), [None, Some(1), Some(2)]);
    push(&spool, 3..6).await;
    assert_eq!(waiting(&spool), [3, 4, 5]);
    assert_eq!(spool.shared.state().segments.len(), 1);
    drop(spool);
    assert_eq!(drain(&open(dir.path())), (vec![1, 2, 3, 4, 5], 1));
}

#[tokio::test]
async fn a_file_that_shrinks_or_disappears_under_the_spool_costs_what_was_in_it() {
    for removed in [false, true] {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = open(dir.path());
        push(&spool, 0..3).await;
        let path = segments(dir.path()).pop().expect("a segment");
        if removed {
            std::fs::remove_file(&path).expect("removed");
        } else {
            OpenOptions::new().write(true).open(&path).expect("the segment").set_len(20).expect("shorter");
        }
        let (entries, counted) = counted(|| read_all(&spool));
        let lost: u64 = entries.iter().map(|entry| entry.count).sum();
        assert!(entries.iter().all(|entry| entry.change.is_err()));
        assert_eq!((lost, counted), (3, 3), "removed {removed}");
        push(&spool, 3..6).await;
        assert_eq!(waiting(&spool), [3, 4, 5], "removed {removed}");
        drop(spool);
        let spool = open(dir.path());
        assert_eq!(drain(&spool).0, [3, 4, 5], "removed {removed}");
    }
}

/// What a patch waits for may be damaged, and its lead with it.
#[tokio::test]
async fn a_damaged_patch_holds_nobody_back_for_ever() {
    for at in [10, record::HEADER + 10] {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = open(dir.path());
        spool.push(&patch("lead")).await.expect("kept");
        let path = segments(dir.path()).pop().expect("a segment");
        OpenOptions::new().write(true).open(&path).expect("the segment").write_all_at(b"?", at as u64).expect("written");
        assert!(spool.holds_back(&patch("lead")));
        drain(&spool);
        assert!(!spool.holds_back(&patch("lead")), "byte {at}");
    }
}

#[tokio::test]
async fn segments_that_are_missing_are_counted_and_the_others_read() {
    let whole = tempfile::tempdir().expect("a directory");
    let spool = open(whole.path());
    push(&spool, 0..2000).await;
    drop(spool);
    let all = segments(whole.path());
    let first = |path: &PathBuf| path.file_stem().and_then(|stem| stem.to_str()).expect("a name").parse::<u64>().expect("a number");
    assert!(all.len() > 3);
    for missing in [0, 1, all.len() - 1] {
        let dir = tempfile::tempdir().expect("a directory");
        for path in all.iter().chain([&whole.path().join("cursor")]).filter(|path| **path != all[missing]) {
            std::fs::copy(path, dir.path().join(path.file_name().expect("a name"))).expect("copied");
        }
        let lost = first(&all[missing])..all.get(missing + 1).map_or(2000, first);
        let ((read, damaged), counted) = counted(|| drain(&open(dir.path())));
        let expected: Vec<u64> = (0..2000).filter(|action| !lost.contains(action)).collect();
        assert!(read == expected, "segment {missing}: {} came", read.len());
        assert_eq!((damaged, counted), (0, lost.end - lost.start), "segment {missing}");
        assert_eq!(files(dir.path()), [""; 0], "segment {missing}: the others are not damaged");
        // Numbers are not used twice.
        let spool = open(dir.path());
        push(&spool, 0..1).await;
        assert_eq!(read_all(&spool)[0].sequence, 2000);
    }
}

#[tokio::test]
async fn a_damaged_cursor_loses_nothing_and_counts_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path());
    push(&spool, 0..2000).await;
    done(&spool, 1000).await;
    done(&spool, 1500).await;
    drop(spool);
    let cursor = std::fs::read(dir.path().join("cursor")).expect("the cursor");
    assert_eq!(cursor.len(), 48);
    for at in 0..49 {
        let mut damaged = cursor.clone();
        if at < 48 {
            damaged[at] ^= 0x10;
        } else {
            damaged = vec![0xAB; 48];
        }
        let copy = tempfile::tempdir().expect("a directory");
        for path in segments(dir.path()) {
            std::fs::copy(&path, copy.path().join(path.file_name().expect("a name"))).expect("copied");
        }
        std::fs::write(copy.path().join("cursor"), damaged).expect("written");
        let ((read, damaged), counted) = counted(|| drain(&open(copy.path())));
        assert!((1500..2000).all(|action| read.contains(&action)) && read.contains(&999), "byte {at}");
        assert_eq!((damaged, counted), (0, 0), "byte {at}");
    }
}

#[tokio::test]
async fn a_write_that_a_crash_cut_short_is_no_damage() {
    const RECORDS: u64 = 3;
    let (name, whole, ends, _) = one_segment(RECORDS + 1).await;
    let acknowledged = ends[ends.len() - 2];
    let mut torn: Vec<Vec<u8>> = (acknowledged..whole.len()).map(|end| whole[..end].to_vec()).collect();
    // A file system may have given the length and not the bytes.
    torn.push([&whole[..acknowledged], &[0; 4096]].concat());
    torn.push([&whole[..acknowledged + 20], &[0; 4096]].concat());
    for (case, bytes) in torn.iter().enumerate() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join(&name), bytes).expect("written");
        let (spool, counted) = counted(|| open(dir.path()));
        assert_eq!((spool.status().events, counted), (RECORDS, 0), "case {case}");
        push(&spool, RECORDS..RECORDS + 1).await;
        assert_eq!(drain(&spool), ((0..=RECORDS).collect(), 0), "case {case}");
        assert_eq!(files(dir.path()), [""; 0], "case {case}");
    }
}

/// What cannot be told for certain from damage counts as damage: the record may have been acknowledged.
#[tokio::test]
async fn a_last_record_whose_bytes_are_all_there_and_wrong_is_damage() {
    let (name, whole, ends, _) = one_segment(2).await;
    for (case, from) in [("half of its body never arrived", ends[0] + 150), ("its header never arrived", ends[0])] {
        let dir = tempfile::tempdir().expect("a directory");
        let to = if from == ends[0] { from + record::HEADER } else { whole.len() };
        let mut bytes = whole.clone();
        bytes[from..to].fill(0);
        std::fs::write(dir.path().join(&name), bytes).expect("written");
        let (drained, counted) = counted(|| drain(&open(dir.path())));
        assert_eq!((drained, counted), ((vec![0], 1), 1), "{case}");
    }
}

/// The states in which a first start may be killed.
#[tokio::test]
async fn a_first_start_that_is_killed_at_any_moment_leaves_what_opens_again() {
    let (name, whole, _, cursor) = one_segment(1).await;
    let mut states: Vec<Vec<(&str, &[u8])>> = vec![vec![], vec![("lock", b"")]];
    for length in 0..=cursor.len() {
        states.push(vec![("lock", b""), ("cursor.new", &cursor[..length])]);
    }
    let fresh = [files::slot_bytes(files::Cursor::default()); 2].concat();
    states.push(vec![("lock", b""), ("cursor", &fresh)]);
    for length in 0..whole.len() {
        states.push(vec![("lock", b""), ("cursor", &fresh), (&name, &whole[..length])]);
    }
    for (case, state) in states.into_iter().enumerate() {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = dir.path().join("not/there/yet/spool");
        std::fs::create_dir_all(&spool).expect("a directory");
        for (name, bytes) in state {
            std::fs::write(spool.join(name), bytes).expect("written");
        }
        let (opened, counted) = counted(|| open(&spool));
        assert_eq!(counted, 0, "case {case}");
        push(&opened, 0..1).await;
        assert_eq!(drain(&opened), (vec![0], 0), "case {case}");
    }
}

/// Run with a file system of its own, where that is permitted.
#[tokio::test]
async fn a_first_start_on_a_full_disk_is_refused_and_succeeds_when_there_is_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let mounted = Program::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(dir.path()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mounting a small file system is not permitted here");
        return;
    }
    let filler = dir.path().join("filler");
    let fill = |bytes: usize| std::fs::write(&filler, vec![1; bytes]);
    let path = dir.path().join("spool");
    // Pages are left for the directory and the lock, and none for the cursor.
    let mut refused = 0;
    for pages in 0..=16 {
        let _ = std::fs::remove_dir_all(&path);
        // A part of it is written where all does not fit.
        let _ = fill(pages * 4096);
        if let Err(error) = Spool::open(&path, 1 << 20) {
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
            refused += 1;
            std::fs::remove_file(&filler).expect("room");
            let spool = open(&path);
            push(&spool, 0..1).await;
            assert_eq!(drain(&spool), (vec![0], 0));
        }
    }
    let unmounted = Program::new("umount").arg("--lazy").arg(dir.path()).status();
    assert!(unmounted.is_ok_and(|status| status.success()) && refused > 0, "the disk was never full");
}

#[tokio::test]
async fn what_is_not_ours_in_the_directory_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["+5.log", "5.log", "00000000000000000007.damaged.log.old", "notes.damaged.log", "x"] {
        std::fs::write(dir.path().join(name), b"somebody else's").expect("written");
    }
    let before = files(dir.path());
    let spool = open(dir.path());
    assert_eq!(spool.status().events, 0);
    push(&spool, 0..1).await;
    assert_eq!(waiting(&spool), [0]);
    drop(spool);
    assert_eq!(waiting(&open(dir.path())), [0]);
    let after = files(dir.path());
    assert!(before.iter().all(|name| after.contains(name)) && after.len() == before.len() + 1, "{after:?}");
}

#[tokio::test]
async fn a_disk_that_cannot_be_read_refuses_the_start_and_names_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("00000000000000000000.log")).expect("a directory in place of a file");
    let error = Spool::open(dir.path(), 1 << 20).expect_err("unreadable");
    assert!(error.to_string().contains("00000000000000000000.log"), "{error}");
}

/// The disk as a whole works. What was read says which records are in the bad blocks.
#[tokio::test]
async fn blocks_that_cannot_be_read_cost_what_is_in_them() {
    const RECORDS: u64 = 200;
    let (name, bytes, ends, _) = one_segment(RECORDS).await;
    // From the middle of one block to the middle of another one: three blocks.
    let bad = 10_000..17_000;
    let (from, to) = (8192, 20_480);
    let hit: Vec<u64> = (0..RECORDS)
        .filter(|record| {
            let at = usize::try_from(*record).expect("small");
            ends[at] > from && at.checked_sub(1).map_or(0, |before| ends[before]) < to
        })
        .collect();
    for is_late in [false, true] {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join(&name), &bytes).expect("written");
        let set_bad = |range| super::files::BAD_BYTES.set(range);
        let ((read, lost), counted) = counted(|| {
            if !is_late {
                set_bad(bad.clone());
            }
            let spool = open(dir.path());
            set_bad(bad.clone());
            {
                let mut reader = spool.reader.lock().expect("the reader");
                let reader = reader.as_mut().expect("the reader");
                // They may be readable again.
                assert!(super::files::is_bad_block(&reader.read().expect_err("unreadable")));
                reader.patience = Duration::ZERO;
            }
            drain(&spool)
        });
        set_bad(0..0);
        let expected: Vec<u64> = (0..RECORDS).filter(|action| !hit.contains(action)).collect();
        assert!(read == expected, "late {is_late}: {read:?}");
        assert_eq!((lost, counted), (hit.len() as u64, hit.len() as u64), "late {is_late}");
        assert_eq!(std::fs::read(dir.path().join(name.replace(".log", ".damaged"))).expect("the evidence"), bytes);
    }
}

/// The writer waits for the disk, here for a lock: those who give up leave bounded memory behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_whose_senders_gave_up_do_not_pile_up_before_a_disk_that_hangs() {
    let dir = tempfile::tempdir().expect("a directory");
    let spool = Arc::new(Spool::open(dir.path(), 1 << 30).expect("a spool"));
    let (release, released) = std_mpsc::channel::<()>();
    let (held, is_held) = std_mpsc::channel::<()>();
    let hanging = std::thread::spawn({
        let shared = Arc::clone(&spool.shared);
        move || {
            let _state = shared.state();
            held.send(()).expect("the test");
            let _ = released.recv();
        }
    });
    is_held.recv().expect("the lock");
    let mut large = change("lead", 1);
    if let Some(activity) = &mut large.activity {
        activity.summary = "x".repeat(1 << 20);
    }
    for _ in 0..100 {
        let given_up = tokio::time::timeout(Duration::from_millis(5), spool.push(&large)).await;
        assert!(given_up.is_err(), "the disk hangs");
    }
    let queued = QUEUE - spool.commands.as_ref().expect("a writer").capacity();
    assert!(queued <= 16 && spool.queue_bytes.available_permits() < 2 << 20, "{queued} are queued");
    release.send(()).expect("the thread");
    hanging.join().expect("the thread");
    spool.push(&change("lead", 2)).await.expect("kept");
    let deadline = Instant::now() + Duration::from_secs(10);
    while spool.queue_bytes.available_permits() < QUEUE_BYTES as usize {
        assert!(Instant::now() < deadline, "{:?}", spool.queue_bytes);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // But for what the writer had in its hands already.
    let kept = waiting(&spool);
    assert!(kept.ends_with(&[2]) && kept.len() <= 17, "what was given up is kept: {kept:?}");
}
