//! Teams: the list, and one with its members and invitations.

use maud::{Markup, html};
use serde::Deserialize;
use shardwire_proto::account::permissions::Role;

use crate::dashboard::face::components::{
    Confirm, Field, Tone, badge, button, card, csrf, empty, form, select, table, time,
};
use crate::dashboard::face::layout::{Head, Place, page};
use crate::dashboard::face::{Shell, paths};

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Team {
    pub id: String,
    pub name: String,
    pub created_ms: u64,
    /// Of whoever looks.
    pub role: Option<Role>,
}

#[derive(Debug, Clone, Default)]
pub struct Teams {
    pub teams: Vec<Team>,
}

pub fn list(shell: &Shell, view: &Teams) -> Markup {
    let head = Head::new("Teams", Place::Teams)
        .lead(html! { "Apps belong to a team; what a member may do there depends on their role." });
    let rows: Vec<_> = view
        .teams
        .iter()
        .map(|team| {
            html! {
                tr {
                    th scope="row" { a href=(paths::team(&team.id, &[])) { (team.name) } }
                    td { @if let Some(role) = team.role { (badge(Tone::Plain, role.name())) } }
                    td { (time(shell, team.created_ms)) }
                }
            }
        })
        .collect();
    let body = html! {
        @if rows.is_empty() {
            (empty("No teams", "Make one, or ask for an invitation to one."))
        } @else { (table("Teams", &["Team", "Your role", "Made"], &rows)) }
        details class="card disclosure" open[shell.sent_to(&paths::to(&["teams"])).is_some() || rows.is_empty()] {
            summary { h2 { "New team" } }
            (form(shell, &paths::to(&["teams"]), html! {
                (Field::new("name", "Name").required().max(80).sent(shell.sent_to(&paths::to(&["teams"]))))
                div class="actions" { button type="submit" class="button primary" { "Make the team" } }
            }))
        }
    };
    page(shell, &head, &body)
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    pub id: String,
    pub email: String,
    pub name: String,
    pub role: Role,
    #[serde(default)]
    pub second_factor: bool,
    #[serde(default)]
    pub since_ms: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Invitation {
    pub id: String,
    pub email: String,
    pub role: Role,
    #[serde(default)]
    pub created_ms: u64,
    #[serde(default)]
    pub expires_ms: u64,
}

#[derive(Debug, Clone, Default)]
pub struct TeamView {
    pub team: Team,
    pub members: Vec<Member>,
    /// Empty for those who may not see them.
    pub invitations: Vec<Invitation>,
    /// The id of whoever looks.
    pub own_id: String,
    /// Of an invitation that could not be sent by mail: to be handed over by other means.
    pub link: Option<String>,
}

pub fn one(shell: &Shell, view: &TeamView) -> Markup {
    let mut head = Head::new(&view.team.name, Place::Teams);
    head.crumb("Teams", paths::to(&["teams"]));
    let may_see_audit = shell.can("GET", "/teams/{team}/audit");
    let head = head
        .lead(html! {
            @if let Some(role) = view.team.role { "You are " (role.name()) ": " (role.description()) "." }
        })
        .actions(html! {
            @if may_see_audit { a class="button" href=(paths::team(&view.team.id, &["audit"])) { "Audit log" } }
        });
    let may_invite = shell.can("POST", "/teams/{team}/invitations");
    let body = html! {
        (card("members", "Members", html! {
            @let rows: Vec<_> = view.members.iter().map(|member| member_row(shell, view, member)).collect();
            (table("Members", &["Member", "Role", "Second factor", "Since", ""], &rows))
        }))
        @if may_invite { (card("invitations", "Invitations", invitations(shell, view))) }
        (card("roles", "What roles may do", html! {
            dl class="facts" {
                @for role in Role::ALL { dt { (role.name()) } dd { (role.description()) } }
            }
        }))
        (card("careful", "This team", ending(shell, view)))
    };
    page(shell, &head, &body)
}

/// Roles that whoever looks may give.
fn assignable(shell: &Shell) -> Vec<(&'static str, &'static str)> {
    let standing = shell.standing;
    let own = standing.and_then(|standing| standing.role);
    let is_operator = standing.is_some_and(|standing| standing.is_operator);
    let may = |role: &Role| is_operator || own.is_some_and(|own| own.may_assign(*role));
    let roles = Role::ALL.into_iter().filter(may);
    roles.map(|role| (role.name(), role.name())).collect()
}

fn member_row(shell: &Shell, view: &TeamView, member: &Member) -> Markup {
    let is_own = member.id == view.own_id;
    let roles = assignable(shell);
    let is_below = roles.iter().any(|(name, _)| *name == member.role.name());
    let may_change = shell.can("PATCH", "/teams/{team}/members/{id}") && is_below && !is_own;
    let action = paths::team(&view.team.id, &["members", &member.id]);
    let id = format!("role-{}", member.id);
    html! {
        tr {
            th scope="row" {
                (member.name) @if is_own { " " (badge(Tone::Accent, "you")) }
                span class="sub" { (member.email) }
            }
            td {
                @if may_change {
                    form method="post" action=(action) class="inline pair" {
                        (csrf(shell))
                        label class="sr" for=(id) { "Role of " (member.name) }
                        select id=(id) name="role" {
                            @for (value, text) in &roles {
                                option value=(value) selected[*value == member.role.name()] { (text) }
                            }
                        }
                        button type="submit" class="button small" { "Set" }
                    }
                } @else { (badge(Tone::Plain, member.role.name())) }
            }
            td {
                @if member.second_factor { (badge(Tone::Good, "on")) } @else { (badge(Tone::Warn, "off")) }
            }
            td { (time(shell, member.since_ms)) }
            td class="row-actions" {
                @if may_change && shell.can("DELETE", "/teams/{team}/members/{id}") {
                    (Confirm {
                        id: &format!("out-{}", member.id),
                        label: "Remove",
                        title: &format!("Remove {} from the team?", member.name),
                        text: "They lose the team’s apps at once. Their account stays.",
                        action: &paths::team(&view.team.id, &["members", &member.id, "remove"]),
                        verb: "Remove",
                        fields: html! {},
                        is_dangerous: true,
                    }.render(shell))
                }
            }
        }
    }
}

fn invitations(shell: &Shell, view: &TeamView) -> Markup {
    let rows: Vec<_> = view
        .invitations
        .iter()
        .map(|invitation| {
            let remove = paths::team(&view.team.id, &["invitations", &invitation.id, "remove"]);
            html! {
                tr {
                    th scope="row" { (invitation.email) }
                    td { (badge(Tone::Plain, invitation.role.name())) }
                    td { (time(shell, invitation.created_ms)) }
                    td { (time(shell, invitation.expires_ms)) }
                    td class="row-actions" {
                        @if shell.can("DELETE", "/teams/{team}/invitations/{id}") { (button(shell, &remove, "Withdraw")) }
                    }
                }
            }
        })
        .collect();
    let action = paths::team(&view.team.id, &["invitations"]);
    let sent = shell.sent_to(&action);
    html! {
        @if let Some(link) = &view.link {
            p { "The invitation’s link, to be handed over by other means:" }
            (crate::dashboard::face::components::copyable("link", "Link of the invitation", link))
        }
        @if !rows.is_empty() {
            (table("Invitations", &["Invited", "Role", "Sent", "Ends", ""], &rows))
        }
        (form(shell, &action, html! {
            div class="columns" {
                (Field::new("email", "E-mail").kind("email").required().max(254)
                    .scope("invite").sent(sent))
                (select("invite-role", "role", "Role", &assignable(shell), sent.or("role", "developer")))
            }
            div class="actions" { button type="submit" class="button primary" { "Invite" } }
        }))
    }
}

fn ending(shell: &Shell, view: &TeamView) -> Markup {
    let team = &view.team.id;
    let line = |title: &str, text: &str, control: Markup| {
        html! {
            div class="line" {
                div { h3 { (title) } p class="hint" { (text) } }
                div { (control) }
            }
        }
    };
    let others: Vec<_> = view
        .members
        .iter()
        .filter(|member| member.id != view.own_id)
        .collect();
    let heirs: Vec<_> = others
        .iter()
        .map(|member| (member.id.as_str(), member.email.as_str()))
        .collect();
    html! {
        @if shell.can("PATCH", "/teams/{team}") {
            (form(shell, &paths::team(team, &[]), html! {
                (Field::new("name", "Name").value(&view.team.name).required().max(80).scope("team").sent(shell.sent_to(&paths::team(team, &[]))))
                div class="actions" { button type="submit" class="button" { "Rename" } }
            }))
        }
        (line("Leave the team", "You lose its apps. The last owner cannot leave.", Confirm {
            id: "leave",
            label: "Leave",
            title: "Leave the team?",
            text: "Only an invitation brings you back.",
            action: &paths::team(team, &["leave"]),
            verb: "Leave",
            fields: html! {},
            is_dangerous: true,
        }.render(shell)))
        @if !heirs.is_empty() && shell.can("POST", "/teams/{team}/transfer") {
            (line("Hand the team over", "Another member becomes owner, and you an admin.", Confirm {
                id: "transfer",
                label: "Hand over",
                title: "Hand the team over?",
                text: "You are an admin afterwards.",
                action: &paths::team(team, &["transfer"]),
                verb: "Hand it over",
                fields: select("transfer-account", "account", "To", &heirs, ""),
                is_dangerous: false,
            }.render(shell)))
        }
        @if shell.can("DELETE", "/teams/{team}") {
            (line("Delete the team", "It must have no apps any more.", Confirm {
                id: "team-delete",
                label: "Delete",
                title: "Delete the team?",
                text: "This cannot be undone.",
                action: &paths::team(team, &["delete"]),
                verb: "Delete the team",
                fields: html! {
                    (Field::new("confirm", &format!("Type {} to confirm", view.team.name)).required()
                        .scope("team-delete").sent(shell.sent_to(&paths::team(team, &["delete"]))))
                },
                is_dangerous: true,
            }.render(shell)))
        }
    }
}
