#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::Barrier;

use redb::{ReadableDatabase as _, WriteTransaction};
use tempfile::TempDir;

use super::*;

const NUMBERS: TableDefinition<'static, u64, u64> = TableDefinition::new("numbers");
const LAYOUT: Layout = Layout {
    format: 7,
    cache_bytes: 1 << 20,
    tables: |transaction| {
        transaction.open_table(NUMBERS)?;
        Ok(())
    },
};

fn open_in(dir: &TempDir) -> Result<DatabaseFile, Unusable> {
    DatabaseFile::open(&dir.path().join("some/data.redb"), LAYOUT)
}

fn insert(transaction: &WriteTransaction, number: u64) -> Result<((), End), io::Error> {
    let inserted = || -> Result<(), redb::Error> {
        transaction.open_table(NUMBERS)?.insert(number, number)?;
        Ok(())
    };
    inserted().map_err(io::Error::other)?;
    Ok(((), End::Commit))
}

fn number(file: &DatabaseFile, number: u64) -> Option<u64> {
    let read = |database: &Database| -> Result<_, redb::Error> {
        Ok(database.begin_read()?.open_table(NUMBERS)?.get(number)?.map(|value| value.value()))
    };
    file.read(|database| read(database).map_err(io::Error::other)).unwrap()
}

fn names(dir: &TempDir) -> Vec<String> {
    fs::read_dir(dir.path().join("some")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn what_panics_costs_only_itself() {
    let dir = TempDir::new().unwrap();
    let file = open_in(&dir).unwrap();
    file.transact(|transaction| insert(transaction, 1)).unwrap();
    for _ in 0..3 {
        let failed = file
            .transact::<(), io::Error>(|transaction| {
                insert(transaction, 2)?;
                let _held = transaction.open_table(NUMBERS);
                panic!("a damaged page")
            })
            .unwrap_err();
        assert!(failed.is_about_content && failed.error.to_string().contains("a damaged page"), "{failed:?}");
        let read = file.read::<(), io::Error>(|_| panic!("another damaged page")).unwrap_err();
        assert!(read.to_string().contains("data.redb") && read.to_string().contains("another damaged page"), "{read}");
    }
    file.transact(|transaction| insert(transaction, 3)).unwrap();
    assert_eq!([1, 2, 3].map(|wanted| number(&file, wanted)), [Some(1), None, Some(3)]);
    drop(file);
    assert_eq!(number(&open_in(&dir).unwrap(), 3), Some(3));
}

#[test]
fn a_handle_that_is_of_no_use_is_replaced() {
    let dir = TempDir::new().unwrap();
    let file = open_in(&dir).unwrap();
    file.transact(|transaction| insert(transaction, 1)).unwrap();
    let handle = file.current.load_full().unwrap();
    // As after an error of the disk.
    file.current.store(None);
    // A read that has not ended keeps the file from being opened.
    assert_eq!(file.recover().unwrap_err().kind, Kind::InUse);
    assert!(file.read::<(), io::Error>(|_| Ok(())).is_err());
    drop(handle);
    let deadline = Instant::now() + Duration::from_secs(10);
    while file.transact(|transaction| insert(transaction, 2)).is_err() {
        assert!(Instant::now() < deadline, "it is never opened again: {:?}", file.trouble());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!([1, 2].map(|wanted| number(&file, wanted)), [Some(1), Some(2)]);
    assert!(file.trouble().why.is_none());
}

#[test]
fn what_an_unfinished_start_left_is_replaced() {
    // As redb writes a header before the database is complete: all of it but the first bytes.
    let mut header = vec![0; 4096];
    header[9..64].fill(7);
    let headed = [header, vec![0; 100_000]].concat();
    for left in [&b""[..], &[0; 100_000], &headed] {
        let dir = TempDir::new().unwrap();
        fs::create_dir_all(dir.path().join("some")).unwrap();
        fs::write(dir.path().join("some/data.redb"), left).unwrap();
        fs::write(dir.path().join("some/.data.redb.abcdef.new"), left).unwrap();
        let file = open_in(&dir).unwrap();
        file.transact(|transaction| insert(transaction, 1)).unwrap();
        assert_eq!((number(&file, 1), names(&dir)), (Some(1), vec!["data.redb".to_owned()]));
    }
}

#[test]
fn whatever_else_is_there_is_refused_and_left_alone() {
    let complete = {
        let dir = TempDir::new().unwrap();
        drop(open_in(&dir).unwrap());
        fs::read(dir.path().join("some/data.redb")).unwrap()
    };
    let mut beheaded = complete.clone();
    beheaded[..4096].fill(0);
    let mut cut = complete;
    cut.truncate(20_000);
    for other in [b"a letter".to_vec(), vec![0x5A; 100_000], beheaded, cut] {
        let dir = TempDir::new().unwrap();
        fs::create_dir_all(dir.path().join("some")).unwrap();
        let path = dir.path().join("some/data.redb");
        fs::write(&path, &other).unwrap();
        let refused = open_in(&dir).unwrap_err();
        assert_eq!(refused.kind, Kind::Damaged, "{refused}");
        assert!(["data.redb", "backup", "move it away"].iter().all(|said| refused.words.contains(said)), "{refused}");
        assert!(fs::read(&path).unwrap() == other && names(&dir).len() == 1);
    }
}

#[test]
fn another_format_is_refused() {
    let dir = TempDir::new().unwrap();
    drop(open_in(&dir).unwrap());
    let path = dir.path().join("some/data.redb");
    let refused = DatabaseFile::open(&path, Layout { format: 8, ..LAYOUT }).unwrap_err();
    assert!(refused.kind == Kind::Damaged && refused.words.contains("is of format 7, and this program knows 8"), "{refused}");
    drop(open_in(&dir).unwrap());
}

#[test]
fn of_many_that_create_it_at_once_one_has_it() {
    for left in [None, Some(vec![0; 50_000])] {
        for _ in 0..10 {
            let dir = TempDir::new().unwrap();
            if let Some(left) = &left {
                fs::create_dir_all(dir.path().join("some")).unwrap();
                fs::write(dir.path().join("some/data.redb"), left).unwrap();
            }
            let start = Barrier::new(4);
            let opened: Vec<_> = std::thread::scope(|scope| {
                let opener = || {
                    start.wait();
                    open_in(&dir)
                };
                let openers: Vec<_> = (0..4).map(|_| scope.spawn(opener)).collect();
                openers.into_iter().map(|opener| opener.join().unwrap()).collect()
            });
            let (with, without): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
            assert!(without.iter().all(|refused| matches!(refused, Err(error) if error.kind == Kind::InUse)), "{without:?}");
            let [Ok(file)] = &*with else { panic!("{} have it: {without:?}", with.len()) };
            file.transact(|transaction| insert(transaction, 1)).unwrap();
            drop(with);
            assert_eq!((number(&open_in(&dir).unwrap(), 1), names(&dir)), (Some(1), vec!["data.redb".to_owned()]));
        }
    }
}
