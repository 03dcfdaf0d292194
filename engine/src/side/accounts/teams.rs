//! Teams: who is in them with which role, who is invited, and which apps are theirs.
//!
//! Invariant: a team has an owner at all times.

use serde::Serialize;
use shardwire_proto::account::permissions::Role;
use shardwire_proto::account::{check_name, normalize_email};
use shardwire_proto::error::ErrorCode;

use super::documents::{
    Account, Document, Email, Invitation, Member, OwnedApp, Purpose, Setting, Team,
};
use super::keeper::{Keeper, Kept, LIST_MAX, Result, add, bad, make_id, not_permitted, record};
use super::sessions::Principal;
use crate::records::{Change, Scan};

/// The setting that names the first team, which has the apps that nobody gave to another.
const FIRST_TEAM: &str = "first-team";
/// Teams that an account may be in.
const TEAMS_MAX: u64 = 100;
/// Members of a team.
const MEMBERS_MAX: u64 = 500;

/// A team, as it is shown.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TeamInfo {
    pub id: String,
    pub name: String,
    pub created_ms: u64,
    /// Of whoever asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// A member, as it is shown to the others.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberInfo {
    pub id: String,
    pub email: String,
    pub name: String,
    pub role: Role,
    pub second_factor: bool,
    pub since_ms: u64,
}

/// An invitation, as it is shown.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InvitationInfo {
    pub id: String,
    pub email: String,
    pub role: Role,
    pub team: String,
    pub team_name: String,
    pub created_ms: u64,
    pub expires_ms: u64,
    /// Whether somebody with an account is invited.
    #[serde(skip)]
    pub has_account: bool,
}

fn member_id(team: &str, account: &str) -> String {
    format!("{team}/{account}")
}

fn member_record(
    team: &str,
    account: &str,
    role: Role,
    now_ms: u64,
) -> Result<crate::records::Record> {
    let member = Member {
        team: team.to_owned(),
        account: account.to_owned(),
        role,
        since_ms: now_ms,
    };
    record(
        member_id(team, account),
        &member,
        &[("team", team), ("account", account)],
        now_ms,
    )
}

impl Keeper {
    // -- teams ------------------------------------------------------------------------------------------------------

    /// The changes that make an account an owner of the first team, and the team where it is missing.
    pub(super) fn first_team_changes(&mut self, account: &str) -> Result<Vec<Change>> {
        let now_ms = self.now();
        if let Some(team) = self.first_team()? {
            return Ok(match self.find::<Member>(&member_id(&team, account))? {
                Some(mut kept) => {
                    kept.document.role = Role::Owner;
                    vec![kept.put()?]
                }
                None => vec![add::<Member>(member_record(
                    &team,
                    account,
                    Role::Owner,
                    now_ms,
                )?)],
            });
        }
        let (team, mut changes) = self.team_changes("My team", account)?;
        let value = team;
        changes.push(add::<Setting>(record(
            FIRST_TEAM,
            &Setting { value },
            &[],
            now_ms,
        )?));
        Ok(changes)
    }

    /// The team that has the apps that nobody gave to another.
    pub fn first_team(&mut self) -> Result<Option<String>> {
        Ok(self
            .find::<Setting>(FIRST_TEAM)?
            .map(|kept| kept.document.value))
    }

    fn team_changes(&mut self, name: &str, owner: &str) -> Result<(String, Vec<Change>)> {
        let now_ms = self.now();
        let id = make_id("t");
        let team = Team {
            name: check_name(name)?,
            created_ms: now_ms,
        };
        let changes = vec![
            add::<Team>(record(id.clone(), &team, &[], now_ms)?),
            add::<Member>(member_record(&id, owner, Role::Owner, now_ms)?),
        ];
        Ok((id, changes))
    }

    /// Makes a team that belongs to an account.
    pub fn create_team(&mut self, name: &str, owner: &str) -> Result<TeamInfo> {
        if self.count::<Member>(Some(("account", owner)))? >= TEAMS_MAX {
            return Err(bad("an account may be in 100 teams"));
        }
        let (id, changes) = self.team_changes(name, owner)?;
        self.apply(&changes)?;
        self.team(&id, Some(Role::Owner))
    }

    /// A team.
    pub fn team(&mut self, id: &str, role: Option<Role>) -> Result<TeamInfo> {
        let kept = self.get::<Team>(id)?;
        Ok(TeamInfo {
            id: kept.id,
            name: kept.document.name,
            created_ms: kept.document.created_ms,
            role,
        })
    }

    /// The teams of an account; of whoever runs the server all.
    pub fn teams(&mut self, who: &Principal) -> Result<Vec<TeamInfo>> {
        let mut teams = Vec::new();
        if who.is_operator {
            for kept in self.scan::<Team>(&Scan::of(Team::KIND, LIST_MAX))? {
                teams.push(TeamInfo {
                    role: who.role_in(&kept.id),
                    id: kept.id,
                    name: kept.document.name,
                    created_ms: kept.document.created_ms,
                });
            }
            return Ok(teams);
        }
        for (team, role) in &who.roles {
            teams.push(self.team(team, Some(*role))?);
        }
        teams.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(teams)
    }

    /// Gives a team another name.
    pub fn rename_team(&mut self, id: &str, name: &str) -> Result<TeamInfo> {
        let mut kept = self.get::<Team>(id)?;
        kept.document.name = check_name(name)?;
        let put = kept.put()?;
        self.apply(&[put])?;
        self.team(id, None)
    }

    /// Removes a team that has no app.
    pub fn delete_team(&mut self, id: &str) -> Result<()> {
        let kept = self.get::<Team>(id)?;
        if self.first_team()?.as_deref() == Some(id) {
            return Err(bad(
                "the first team stays, as it has the apps of no other team",
            ));
        }
        if self.count::<OwnedApp>(Some(("team", id)))? > 0 {
            return Err(bad(
                "the team has apps; delete them or give them to another team first",
            ));
        }
        let mut changes = vec![kept.delete()];
        changes.extend(
            self.labelled::<Member>("team", id)?
                .iter()
                .map(Kept::delete),
        );
        changes.extend(
            self.labelled::<Invitation>("team", id)?
                .iter()
                .map(Kept::delete),
        );
        self.apply(&changes)
    }

    // -- members ----------------------------------------------------------------------------------------------------

    /// A team's members: owners first, then by address.
    pub fn members(&mut self, team: &str) -> Result<Vec<MemberInfo>> {
        let mut members = Vec::new();
        for kept in self.labelled::<Member>("team", team)? {
            let member = kept.document;
            let Some(account) = self.find::<Account>(&member.account)? else {
                continue;
            };
            members.push(MemberInfo {
                id: member.account,
                email: account.document.email,
                name: account.document.name,
                role: member.role,
                second_factor: account.document.second_factor.is_some(),
                since_ms: member.since_ms,
            });
        }
        members.sort_by(|a, b| (a.role, &a.email).cmp(&(b.role, &b.email)));
        Ok(members)
    }

    /// Gives a member another role. `own` is that of whoever does it; none: runs the server.
    pub fn set_role(
        &mut self,
        team: &str,
        account: &str,
        role: Role,
        own: Option<Role>,
    ) -> Result<()> {
        let mut kept = self.get::<Member>(&member_id(team, account))?;
        let may = |role| own.is_none_or(|own: Role| own.may_assign(role));
        if !may(role) || !may(kept.document.role) {
            return Err(not_permitted("only an owner may make or change an owner"));
        }
        if role != Role::Owner {
            self.check_not_last_owner(&kept.document)?;
        }
        kept.document.role = role;
        let put = kept.put()?;
        self.apply(&[put])
    }

    /// Takes a member out of a team. `own` is the role of whoever does it; none: runs the server, or leaves.
    pub fn remove_member(&mut self, team: &str, account: &str, own: Option<Role>) -> Result<()> {
        let kept = self.get::<Member>(&member_id(team, account))?;
        if own.is_some_and(|own| !own.may_assign(kept.document.role)) {
            return Err(not_permitted("only an owner may remove an owner"));
        }
        self.check_not_last_owner(&kept.document)?;
        self.apply(&[kept.delete()])
    }

    /// Makes a member an owner, and whoever was one an admin.
    pub fn transfer_team(&mut self, team: &str, from: &str, to: &str) -> Result<()> {
        let mut heir = self.get::<Member>(&member_id(team, to))?;
        heir.document.role = Role::Owner;
        let mut changes = vec![heir.put()?];
        if from != to
            && let Some(mut kept) = self.find::<Member>(&member_id(team, from))?
        {
            kept.document.role = Role::Admin;
            changes.push(kept.put()?);
        }
        self.apply(&changes)
    }

    pub(super) fn check_not_last_owner(&mut self, member: &Member) -> Result<()> {
        if member.role != Role::Owner {
            return Ok(());
        }
        let members = self.labelled::<Member>("team", &member.team)?;
        let owners = members
            .iter()
            .filter(|kept| kept.document.role == Role::Owner);
        match owners.count() {
            0 | 1 => Err(bad(
                "a team has at least one owner; make somebody else one first",
            )),
            _ => Ok(()),
        }
    }

    // -- invitations ------------------------------------------------------------------------------------------------

    /// Invites an address to a team; the link goes to it by mail, and is returned where there is no mail server.
    pub fn invite(
        &mut self,
        team: &str,
        email: &str,
        role: Role,
        who: &Principal,
    ) -> Result<InvitationInfo> {
        let email = normalize_email(email)?;
        let own = who.role_in(team);
        if !who.is_operator && !own.is_some_and(|own| own.may_assign(role)) {
            return Err(not_permitted("only an owner may invite an owner"));
        }
        let kept = self.get::<Team>(team)?;
        if let Some(account) = self.by_email(&email)?
            && self
                .find::<Member>(&member_id(team, &account.id))?
                .is_some()
        {
            return Err(bad("they are in the team already"));
        }
        let places = self.count::<Member>(Some(("team", team)))?
            + self.count::<Invitation>(Some(("team", team)))?;
        if places >= MEMBERS_MAX {
            return Err(bad("a team has at most 500 members and invitations"));
        }
        let now_ms = self.now();
        let id = make_id("i");
        let (_, life_ms) = Purpose::Join.page();
        let invitation = Invitation {
            team: team.to_owned(),
            email: email.clone(),
            role,
            by: who.account.clone(),
            created_ms: now_ms,
            expires_ms: now_ms + life_ms,
        };
        let mut record = record(id.clone(), &invitation, &[("team", team)], now_ms)?;
        record.expires_ms = Some(invitation.expires_ms);
        let (url, put) = self.link(Purpose::Join, &id, None)?;
        self.apply(&[add::<Invitation>(record), put])?;
        let (by, name) = (&who.name, &kept.document.name);
        let text = format!(
            "{by} invites you to the team {name} on Shardwire:\n\n{url}\n\nThe link works for a week.\n"
        );
        self.send(&email, &format!("Invitation to {name}"), text);
        self.invitation_info(id, invitation)
    }

    fn invitation_info(&mut self, id: String, invitation: Invitation) -> Result<InvitationInfo> {
        let team = self.get::<Team>(&invitation.team)?;
        let has_account = self.find::<Email>(&invitation.email)?.is_some();
        Ok(InvitationInfo {
            id,
            email: invitation.email,
            role: invitation.role,
            team: invitation.team,
            team_name: team.document.name,
            created_ms: invitation.created_ms,
            expires_ms: invitation.expires_ms,
            has_account,
        })
    }

    /// A team's open invitations.
    pub fn invitations(&mut self, team: &str) -> Result<Vec<InvitationInfo>> {
        let found = self.labelled::<Invitation>("team", team)?;
        found
            .into_iter()
            .map(|kept| self.invitation_info(kept.id, kept.document))
            .collect()
    }

    /// Takes an invitation back.
    pub fn withdraw(&mut self, team: &str, id: &str) -> Result<()> {
        let kept = self.get::<Invitation>(id)?;
        if kept.document.team != team {
            return Err(ErrorCode::NotFound.into());
        }
        self.apply(&[kept.delete()])
    }

    /// What a link invites to.
    pub fn invitation_of(&mut self, token: &str) -> Result<InvitationInfo> {
        let link = self.find_link(token, Purpose::Join)?;
        let kept = self.get::<Invitation>(&link.document.subject)?;
        self.invitation_info(kept.id, kept.document)
    }

    /// The changes that use an invitation up.
    fn join_changes(&mut self, token: &str, account: &str) -> Result<(Invitation, Vec<Change>)> {
        let link = self.find_link(token, Purpose::Join)?;
        let kept = self.get::<Invitation>(&link.document.subject)?;
        let (team, role) = (kept.document.team.clone(), kept.document.role);
        if self.find::<Member>(&member_id(&team, account))?.is_some() {
            return Err(bad("you are in this team already"));
        }
        let member = member_record(&team, account, role, self.now())?;
        let changes = vec![add::<Member>(member), kept.delete(), link.delete()];
        Ok((kept.document, changes))
    }

    /// Takes an invitation with an account that is made for it: the letter has shown that the address is theirs.
    pub(super) fn join_anew(&mut self, token: &str, name: &str, hash: String) -> Result<String> {
        let email = self.invitation_of(token)?.email;
        let (id, mut changes) = self.account_changes(&email, name, Some(hash), true, false)?;
        let (_, joins) = self.join_changes(token, &id)?;
        changes.extend(joins);
        self.apply(&changes)?;
        Ok(id)
    }

    /// Takes an invitation with the account that is signed in, which has to be the invited one.
    pub fn join(&mut self, token: &str, who: &Principal) -> Result<TeamInfo> {
        let (invitation, changes) = self.join_changes(token, &who.account)?;
        if invitation.email != who.email {
            return Err(not_permitted(
                "the invitation is for another address; sign in with that one",
            ));
        }
        self.apply(&changes)?;
        self.team(&invitation.team, Some(invitation.role))
    }

    // -- apps -------------------------------------------------------------------------------------------------------

    /// Which team an app belongs to.
    pub fn team_of(&mut self, app: &str) -> Result<Option<String>> {
        match self.find::<OwnedApp>(app)? {
            Some(kept) => Ok(Some(kept.document.team)),
            None => self.first_team(),
        }
    }

    /// Which teams apps belong to, in their order.
    pub fn teams_of(&mut self, apps: &[String]) -> Result<Vec<Option<String>>> {
        apps.iter().map(|app| self.team_of(app)).collect()
    }

    /// Gives an app to a team.
    pub fn give_app(&mut self, app: &str, team: &str) -> Result<()> {
        self.get::<Team>(team)?;
        let owned = OwnedApp {
            team: team.to_owned(),
        };
        let record = record(app, &owned, &[("team", team)], self.now())?;
        self.apply(&[Change::put(OwnedApp::KIND, record)])
    }

    /// Forgets whose an app was.
    pub fn forget_app(&mut self, app: &str) -> Result<()> {
        self.apply(&[Change::delete(OwnedApp::KIND, app)])
    }
}
