//! Every role with every call, cell by cell, against the table as it is agreed on.

use std::collections::BTreeSet;

use super::*;

/// Per call: nobody signed in, signed in without a role, owner, admin, developer, viewer, billing, operator.
const AGREED: &str = "
POST   /login                                      y y y y y y y y
POST   /login/code                                 y y y y y y y y
POST   /refresh                                    y y y y y y y y
POST   /signup                                     y y y y y y y y
POST   /setup                                      y y y y y y y y
POST   /verify                                     y y y y y y y y
POST   /forgot                                     y y y y y y y y
POST   /reset                                      y y y y y y y y
POST   /join                                       y y y y y y y y
POST   /email/confirm                              y y y y y y y y
POST   /email/undo                                 y y y y y y y y
POST   /logout                                     - y y y y y y y
GET    /me                                         - y y y y y y y
PATCH  /me                                         - y y y y y y y
POST   /me/password                                - y y y y y y y
POST   /me/email                                   - y y y y y y y
DELETE /me/email                                   - y y y y y y y
GET    /me/sessions                                - y y y y y y y
DELETE /me/sessions                                - y y y y y y y
DELETE /me/sessions/{id}                           - y y y y y y y
GET    /me/audit                                   - y y y y y y y
POST   /me/totp                                    - y y y y y y y
POST   /me/totp/confirm                            - y y y y y y y
POST   /me/totp/remove                             - y y y y y y y
POST   /me/recovery-codes                          - y y y y y y y
POST   /me/join                                    - y y y y y y y
GET    /apps                                       - y y y y y y y
GET    /teams                                      - y y y y y y y
POST   /teams                                      - y y y y y y y
GET    /openapi.json                               - y y y y y y y
GET    /teams/{team}                               - - y y y y y y
PATCH  /teams/{team}                               - - y y - - - y
DELETE /teams/{team}                               - - y - - - - y
GET    /teams/{team}/members                       - - y y y y y y
PATCH  /teams/{team}/members/{id}                  - - y y - - - y
DELETE /teams/{team}/members/{id}                  - - y y - - - y
POST   /teams/{team}/leave                         - - y y y y y y
POST   /teams/{team}/transfer                      - - y - - - - y
GET    /teams/{team}/invitations                   - - y y - - - y
POST   /teams/{team}/invitations                   - - y y - - - y
DELETE /teams/{team}/invitations/{id}              - - y y - - - y
GET    /teams/{team}/audit                         - - y y - - - y
POST   /teams/{team}/apps                          - - y y y - - y
GET    /apps/{app}                                 - - y y y y y y
PATCH  /apps/{app}                                 - - y y y - - y
DELETE /apps/{app}                                 - - y y - - - y
POST   /apps/{app}/transfer                        - - y - - - - y
GET    /apps/{app}/keys                            - - y y y y - y
POST   /apps/{app}/keys                            - - y y y - - y
GET    /apps/{app}/keys/{id}                       - - y y y y - y
PATCH  /apps/{app}/keys/{id}                       - - y y y - - y
DELETE /apps/{app}/keys/{id}                       - - y y y - - y
POST   /apps/{app}/keys/{id}/rotate                - - y y y - - y
GET    /apps/{app}/signing-keys                    - - y y y y - y
POST   /apps/{app}/signing-keys                    - - y y y - - y
GET    /apps/{app}/signing-keys/{id}               - - y y y y - y
PATCH  /apps/{app}/signing-keys/{id}               - - y y y - - y
DELETE /apps/{app}/signing-keys/{id}               - - y y y - - y
GET    /apps/{app}/revocations                     - - y y y y - y
POST   /apps/{app}/revocations                     - - y y y - - y
DELETE /apps/{app}/revocations/{id}                - - y y y - - y
POST   /apps/{app}/tokens                          - - y y y - - y
GET    /apps/{app}/usage                           - - y y y y y y
GET    /apps/{app}/plan                            - - y y - - y y
GET    /apps/{app}/channels                        - - y y y y - y
GET    /apps/{app}/channels/{channel}              - - y y y y - y
GET    /apps/{app}/channels/{channel}/messages     - - y y y y - y
POST   /apps/{app}/channels/{channel}/messages     - - y y y - - y
DELETE /apps/{app}/channels/{channel}/messages     - - y y y - - y
GET    /apps/{app}/channels/{channel}/presence     - - y y y y - y
POST   /apps/{app}/publish                         - - y y y - - y
POST   /apps/{app}/clients/{client}/disconnect     - - y y y - - y
POST   /apps/{app}/clients/{client}/unsubscribe    - - y y y - - y
GET    /apps/{app}/webhooks                                 - - y y y y - y
POST   /apps/{app}/webhooks                                 - - y y y - - y
GET    /apps/{app}/webhooks/{id}                            - - y y y y - y
PATCH  /apps/{app}/webhooks/{id}                            - - y y y - - y
DELETE /apps/{app}/webhooks/{id}                            - - y y y - - y
POST   /apps/{app}/webhooks/{id}/rotate                     - - y y y - - y
POST   /apps/{app}/webhooks/{id}/test                       - - y y y - - y
GET    /apps/{app}/webhooks/{id}/events                     - - y y y y - y
GET    /apps/{app}/webhooks/{id}/deliveries                 - - y y y y - y
GET    /apps/{app}/webhooks/{id}/dead-letters               - - y y y y - y
POST   /apps/{app}/webhooks/{id}/dead-letters               - - y y y - - y
DELETE /apps/{app}/webhooks/{id}/dead-letters               - - y y y - - y
GET    /apps/{app}/webhooks/{id}/dead-letters/{item}        - - y y y y - y
DELETE /apps/{app}/webhooks/{id}/dead-letters/{item}        - - y y y - - y
POST   /apps/{app}/webhooks/{id}/dead-letters/{item}/replay - - y y y - - y
POST   /apps/{app}/push/register                            - - y y y - - y
POST   /apps/{app}/push/unregister                          - - y y y - - y
DELETE /apps/{app}/push/unregister                          - - y y y - - y
GET    /apps/{app}/push/subscriptions                       - - y y y y - y
DELETE /apps/{app}/push/subscriptions/{id}                  - - y y y - - y
POST   /apps/{app}/push/channels/add                        - - y y y - - y
POST   /apps/{app}/push/channels/remove                     - - y y y - - y
POST   /apps/{app}/push/send                                - - y y y - - y
POST   /apps/{app}/push/broadcast                           - - y y y - - y
GET    /apps/{app}/push/vapid-key                           - - y y y y - y
GET    /apps/{app}/push/config                              - - y y y y - y
GET    /apps/{app}/push/stats                               - - y y y y - y
GET    /apps/{app}/push/jobs                                - - y y y y - y
GET    /apps/{app}/push/jobs/{id}                           - - y y y y - y
DELETE /apps/{app}/push/jobs/{id}                           - - y y y - - y
GET    /apps/{app}/push/providers                           - - y y y y - y
PUT    /apps/{app}/push/providers/{id}                      - - y y y - - y
DELETE /apps/{app}/push/providers/{id}                      - - y y y - - y
GET    /nodes                                      - - - - - - - y
GET    /config                                     - - - - - - - y
GET    /drain                                      - - - - - - - y
POST   /drain                                      - - - - - - - y
GET    /connections                                - - - - - - - y
GET    /connections/{id}                           - - - - - - - y
DELETE /connections/{id}                           - - - - - - - y
GET    /plans                                      - - - - - - - y
GET    /plans/{id}                                 - - - - - - - y
PUT    /plans/{id}                                 - - - - - - - y
DELETE /plans/{id}                                 - - - - - - - y
POST   /apps                                       - - - - - - - y
GET    /accounts                                   - - - - - - - y
POST   /accounts                                   - - - - - - - y
GET    /accounts/{id}                              - - - - - - - y
PATCH  /accounts/{id}                              - - - - - - - y
DELETE /accounts/{id}                              - - - - - - - y
POST   /accounts/{id}/reset                        - - - - - - - y
GET    /audit                                      - - - - - - - y
";

/// Whoever may come, in the order of the columns.
fn columns() -> Vec<Option<Standing>> {
    let member = |role| {
        Some(Standing {
            is_operator: false,
            role,
        })
    };
    let operator = Some(Standing {
        is_operator: true,
        role: None,
    });
    let roles = Role::ALL.into_iter().map(|role| member(Some(role)));
    [None, member(None)]
        .into_iter()
        .chain(roles)
        .chain([operator])
        .collect()
}

#[test]
fn every_role_may_make_the_calls_that_are_agreed_on_and_no_other() {
    let mut agreed = BTreeSet::new();
    for line in AGREED.trim().lines() {
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let row = PERMISSIONS
            .iter()
            .find(|row| (row.method, row.path) == (method, path));
        let row = row.unwrap_or_else(|| panic!("{method} {path} is not in the table"));
        let cells: Vec<&str> = words.collect();
        let columns = columns();
        assert_eq!(cells.len(), columns.len(), "{line}");
        for (n, (cell, standing)) in cells.iter().zip(columns).enumerate() {
            assert_eq!(
                row.who.admits(standing),
                *cell == "y",
                "{method} {path}, column {n}"
            );
        }
        assert!(agreed.insert((method, path)), "{line} is there twice");
    }
    let there: BTreeSet<_> = PERMISSIONS
        .iter()
        .map(|row| (row.method, row.path))
        .collect();
    assert_eq!(
        there.len(),
        PERMISSIONS.len(),
        "a call is in the table twice"
    );
    assert_eq!(there, agreed);
}

#[test]
fn who_a_call_is_for_fits_its_path() {
    for row in PERMISSIONS {
        let is_app = row.path.starts_with("/apps/{app}");
        let is_team = row.path.starts_with("/teams/{team}");
        assert_eq!(matches!(row.who, Who::App(_)), is_app, "{}", row.path);
        assert_eq!(matches!(row.who, Who::Team(_)), is_team, "{}", row.path);
    }
}

#[test]
fn nobody_gives_a_role_above_their_own() {
    for own in Role::ALL {
        for other in Role::ALL {
            let expected = own == Role::Owner || (own == Role::Admin && other != Role::Owner);
            assert_eq!(own.may_assign(other), expected, "{own:?} {other:?}");
        }
    }
    for role in Role::ALL {
        assert_eq!(Role::parse(role.name()), Some(role));
    }
    assert_eq!(Role::parse("Owner"), None);
}
