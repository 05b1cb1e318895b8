//! Accounts that are locked after failed log-ins, as upstream's `[security_compliance]` has it: off unless configured.
//!
//! The count is in the user's row, so that it holds for every process and source. A locked user's log-in fails as a
//! wrong password does. It ends by itself after `lockout_duration`, or when an administrator enables the user again or
//! sets a new password.

use super::caller::now_us;
use crate::app::App;
use api_kit::Fault;
use base::args;
use base::store::Tx;
use serde::Deserialize;

/// Locking of accounts.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecurityCompliance {
    /// Failed log-ins after which an account is locked; none: never.
    pub lockout_failure_attempts: Option<u32>,
    /// Seconds that it stays locked; 0: until an administrator enables the user.
    pub lockout_duration: u32,
}

impl Default for SecurityCompliance {
    fn default() -> Self {
        Self { lockout_failure_attempts: None, lockout_duration: 1800 }
    }
}

impl SecurityCompliance {
    /// What failed log-ins amount to.
    fn judge(&self, failures: i64, failed_us: i64, now: i64) -> Standing {
        let Some(most) = self.lockout_failure_attempts else { return Standing::Fine };
        if failures < i64::from(most) {
            return Standing::Fine;
        }
        let over = failed_us.saturating_add(i64::from(self.lockout_duration) * 1_000_000) <= now;
        if self.lockout_duration > 0 && over { Standing::Over } else { Standing::Locked }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Fine,
    /// It was locked and is no more: counting begins anew.
    Over,
    Locked,
}

/// Failed log-ins of a user, as its row has them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Failures {
    /// How many in a row.
    pub count: i64,
    /// When the last one was, microseconds since the epoch.
    pub last_us: i64,
}

/// Whether the account is locked.
#[must_use]
pub fn locked(app: &App, failures: Failures) -> bool {
    let rules = &app.config.security_compliance;
    rules.judge(failures.count, failures.last_us, now_us()) == Standing::Locked
}

/// Counts a failed log-in, or forgets the former ones after one that passed.
///
/// # Errors
/// When the store does not answer.
pub async fn note(app: &App, user: &str, passed: bool, before: Failures) -> Result<(), Fault> {
    let rules = app.config.security_compliance;
    if rules.lockout_failure_attempts.is_none() || (passed && before.count == 0) {
        return Ok(());
    }
    let now = now_us();
    let anew = passed || rules.judge(before.count, before.last_us, now) == Standing::Over;
    app.store
        .tx(|tx| async move {
            if anew {
                reset(&tx, user).await?;
            }
            if !passed {
                let sql = "UPDATE identity_users SET failures = failures + 1, failed_us = $1 WHERE id = $2";
                tx.exec(sql, args![now, user]).await?;
            }
            Ok::<_, Fault>(())
        })
        .await
}

/// Unlocks an account.
///
/// # Errors
/// When the store does not answer.
pub async fn reset(tx: &Tx, user: &str) -> Result<(), Fault> {
    tx.exec("UPDATE identity_users SET failures = 0 WHERE id = $1", args![user]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_locked_for_a_while_or_for_good() {
        let rules =
            |most, seconds| SecurityCompliance { lockout_failure_attempts: most, lockout_duration: seconds };
        assert_eq!(rules(None, 1).judge(1000, 0, 0), Standing::Fine);
        assert_eq!(rules(Some(3), 10).judge(2, 0, 0), Standing::Fine);
        assert_eq!(rules(Some(3), 10).judge(3, 0, 9_999_999), Standing::Locked);
        assert_eq!(rules(Some(3), 10).judge(3, 0, 10_000_000), Standing::Over);
        assert_eq!(rules(Some(3), 0).judge(3, 0, i64::MAX), Standing::Locked);
    }
}
