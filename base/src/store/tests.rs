use super::testing::on_both;
use super::{Migration, Query, Store, StoreError, Where};

const STEPS: &[Migration] = &[
    Migration {
        version: 1,
        statements: &[
            "CREATE TABLE counters (id TEXT PRIMARY KEY, n BIGINT NOT NULL, ratio DOUBLE PRECISION, raw BYTEA)",
        ],
    },
    Migration { version: 2, statements: &["ALTER TABLE counters ADD COLUMN note TEXT"] },
];

#[tokio::test]
async fn values_survive_the_round_trip_and_nulls_are_typed() {
    on_both(|db| async move {
        let store = &db.store;
        store.migrate("t", STEPS).await.unwrap();
        store.migrate("t", STEPS).await.unwrap();
        store
            .tx(|tx| async move {
                tx.exec(
                    "INSERT INTO counters (id, n, ratio, raw, note) VALUES ($1, $2, $3, $4, $5)",
                    args!["a", i64::MAX, 0.5, vec![0u8, 255], None::<String>],
                )
                .await
            })
            .await
            .unwrap();
        let row = store.row("SELECT * FROM counters WHERE id = $1", args!["a"]).await.unwrap().unwrap();
        assert_eq!(row.int("n").unwrap(), i64::MAX);
        assert!((row.real("ratio").unwrap() - 0.5).abs() < f64::EPSILON);
        assert_eq!(row.bytes("raw").unwrap(), vec![0, 255]);
        assert_eq!(row.opt_text("note").unwrap(), None);
        assert!(matches!(row.text("note"), Err(StoreError::Shape(_))));
        let mut select = Where::new("SELECT id FROM counters");
        select
            .and_in("id", ["a".into(), "b".into()])
            .and("n > ?", [3.into()])
            .end("ORDER BY id LIMIT ?", [9.into()]);
        let (sql, args) = select.build();
        assert_eq!(store.rows(sql, args).await.unwrap().len(), 1);
        let mut none = Where::new("SELECT id FROM counters");
        none.and_in("id", []);
        let (sql, args) = none.build();
        assert_eq!(store.rows(sql, args).await.unwrap().len(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_duplicate_is_told_apart_and_rolls_back() {
    on_both(|db| async move {
        db.store.migrate("t", STEPS).await.unwrap();
        let insert = |tx: super::Tx| async move {
            tx.exec("INSERT INTO counters (id, n) VALUES ($1, 0)", args!["x"]).await?;
            tx.exec("INSERT INTO counters (id, n) VALUES ($1, 0)", args!["x"]).await
        };
        assert!(matches!(db.store.tx(insert).await, Err(StoreError::Duplicate(_))));
        assert!(db.store.rows("SELECT id FROM counters", args![]).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_increments_are_all_counted() {
    on_both(|db| async move {
        db.store.migrate("t", STEPS).await.unwrap();
        db.store
            .tx(|tx| async move { tx.exec("INSERT INTO counters (id, n) VALUES ($1, 0)", args!["c"]).await })
            .await
            .unwrap();
        let add = |store: Store| async move {
            for _ in 0..10 {
                store
                    .tx(|tx| async move {
                        let row = tx.row("SELECT n FROM counters WHERE id = $1", args!["c"]).await?;
                        let n = row.ok_or_else(|| StoreError::Shape("gone".into()))?.int("n")?;
                        tx.exec("UPDATE counters SET n = $1 WHERE id = $2", args![n + 1, "c"]).await
                    })
                    .await?;
            }
            Ok::<_, StoreError>(())
        };
        let workers: Vec<_> = (0..4).map(|_| tokio::spawn(add(db.store.clone()))).collect();
        for worker in workers {
            worker.await.unwrap().unwrap();
        }
        let row = db.store.row("SELECT n FROM counters", args![]).await.unwrap().unwrap();
        assert_eq!(row.int("n").unwrap(), 40);
    })
    .await;
}

#[tokio::test]
async fn a_dropped_transaction_leaves_nothing_and_frees_the_writer() {
    on_both(|db| async move {
        db.store.migrate("t", STEPS).await.unwrap();
        let never = db.store.tx(|tx| async move {
            tx.exec("INSERT INTO counters (id, n) VALUES ('gone', 0)", args![]).await?;
            std::future::pending::<Result<(), StoreError>>().await
        });
        assert!(tokio::time::timeout(std::time::Duration::from_millis(200), never).await.is_err());
        db.store
            .tx(|tx| async move { tx.exec("INSERT INTO counters (id, n) VALUES ('stays', 0)", args![]).await })
            .await
            .unwrap();
        let rows = db.store.rows("SELECT id FROM counters", args![]).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.text("id").unwrap()).collect::<Vec<_>>(), ["stays"]);
    })
    .await;
}

#[tokio::test]
async fn a_transaction_whose_failure_was_swallowed_is_not_committed() {
    on_both(|db| async move {
        db.store.migrate("t", STEPS).await.unwrap();
        let swallow = |tx: super::Tx| async move {
            tx.exec("INSERT INTO counters (id, n) VALUES ('x', 0)", args![]).await?;
            let _ = tx.exec("INSERT INTO counters (id, n) VALUES ('x', 0)", args![]).await;
            Ok::<_, StoreError>(())
        };
        assert!(db.store.tx(swallow).await.is_err());
        assert!(db.store.rows("SELECT id FROM counters", args![]).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_newer_database_is_refused() {
    on_both(|db| async move {
        db.store.migrate("t", STEPS).await.unwrap();
        let error = db.store.migrate("t", &STEPS[..1]).await.unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: 2, known: 1, .. }), "{error}");
    })
    .await;
}
