use super::*;
use crate::Query;
use base::args;
use base::store::testing::{on_both, sqlite};
use base::store::{Migration, Store, StoreError};
use proptest::prelude::*;

const TABLES: &[Migration] = &[Migration {
    version: 1,
    statements: &[
        "CREATE TABLE rows (id TEXT PRIMARY KEY, name TEXT NOT NULL, size BIGINT NOT NULL, enabled BIGINT NOT NULL,
            created_at TEXT NOT NULL)",
    ],
}];

static LIST: ListSpec = ListSpec {
    table: "rows",
    key: "id",
    filters: &[
        Filter::new("name", "name", Match::Text),
        Filter::new("name~", "name", Match::Contains),
        Filter::new("size", "size", Match::Int),
        Filter::new("enabled", "enabled", Match::Truth),
        Filter::new("changes-since", "created_at", Match::Since),
        Filter::new("own", "", Match::Handler),
    ],
    sorts: &[
        SortKey { name: "name", column: "name" },
        SortKey { name: "size", column: "size" },
        SortKey { name: "created_at", column: "created_at" },
    ],
    default_sort: &[("created_at", Dir::Desc)],
    max_limit: 1000,
    zero_is_all: false,
};

async fn fill(store: &Store, rows: &[(String, i64)]) {
    store.migrate("rows", TABLES).await.unwrap();
    store
        .tx(|tx| async move {
            for (number, (name, size)) in rows.iter().enumerate() {
                let time = format!("2026-01-01T00:00:{:02}.000000Z", number / 3 % 60);
                tx.exec(
                    "INSERT INTO rows (id, name, size, enabled, created_at) VALUES ($1, $2, $3, $4, $5)",
                    args![format!("id{number:03}"), name, *size, number % 2 == 0, time],
                )
                .await?;
            }
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
}

async fn ask(store: &Store, query: &str) -> Result<(Vec<String>, Option<String>), Fault> {
    let page = Page::read(&Query::parse(query), &LIST, store).await?;
    let mut select = Where::new("SELECT id FROM rows");
    page.apply(&mut select);
    let (sql, args) = select.build();
    let mut ids = Vec::new();
    for row in store.rows(sql, args).await? {
        ids.push(row.text("id")?);
    }
    Ok(page.finish(ids, Clone::clone))
}

/// All pages of a query, each by the marker of the one before.
async fn walk(store: &Store, query: &str) -> Vec<String> {
    let (mut all, mut marker) = (Vec::new(), String::new());
    loop {
        let (ids, next) = ask(store, &format!("{query}{marker}")).await.unwrap();
        all.extend(ids);
        match next {
            None => return all,
            Some(next) => marker = format!("&marker={next}"),
        }
        assert!(all.len() < 10_000, "it does not end");
    }
}

#[tokio::test]
async fn filters_sorting_and_paging_work_on_both_engines() {
    on_both(|db| async move {
        let rows: Vec<(String, i64)> = [("b", 2), ("a", 2), ("a", 1), ("c%", 3), ("C", 3)]
            .map(|(name, size)| (name.to_owned(), size))
            .into();
        fill(&db.store, &rows).await;
        let ids = async |query: &str| ask(&db.store, query).await.unwrap().0.join(" ");
        assert_eq!(ids("").await, "id004 id003 id002 id001 id000");
        assert_eq!(
            ids("sort_key=size&sort_dir=asc&sort_key=name&sort_dir=desc").await.split(' ').next(),
            Some("id002")
        );
        assert_eq!(ids("sort=size:desc,name:asc&limit=1").await.len(), 5);
        assert_eq!(ids("name=a&name=b&sort=name:asc,id:asc").await, "id001 id002 id000");
        assert_eq!(ids("name~=%25").await, "id003");
        assert_eq!(ids("size=2&enabled=True").await, "id000");
        assert_eq!(ids("changes-since=2026-01-01T00:00:01").await, "id004 id003");
        assert_eq!(ids("limit=0").await, "");
        assert_eq!(ids("own=whatever&limit=2").await, "id004 id003");
        let (ids, next) = ask(&db.store, "limit=2&marker=id003").await.unwrap();
        assert_eq!((ids.join(" ").as_str(), next.as_deref()), ("id002 id001", Some("id001")));
        for bad in [
            "limit=-1",
            "limit=x",
            "marker=nope",
            "sort_key=secret",
            "sort=name:up",
            "size=big",
            "enabled=maybe",
            "changes-since=soon",
        ] {
            assert_eq!(ask(&db.store, bad).await.unwrap_err().status.as_u16(), 400, "{bad}");
        }
    })
    .await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn paging_shows_every_row_exactly_once(
        rows in proptest::collection::vec(("[a-c]{0,2}", 0i64..4), 0..40),
        limit in 1usize..7,
        sort in prop_oneof![
            Just(""), Just("&sort=name:asc"), Just("&sort=size:desc,name:asc"),
            Just("&sort=name:desc,size:asc,created_at:desc"), Just("&sort_key=size&sort_dir=desc&page_reverse=true")],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let db = sqlite().await;
            fill(&db.store, &rows).await;
            let all = walk(&db.store, &format!("limit=1000{sort}")).await;
            let mut distinct = all.clone();
            distinct.sort();
            distinct.dedup();
            assert_eq!(distinct.len(), rows.len());
            assert_eq!(walk(&db.store, &format!("limit={limit}{sort}")).await, all);
        });
    }
}
