package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/term"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/trust"
	"github.com/bot-bottle/bottle/manifest"
)

// approval is what the user has approved of a manifest. A run uses the text that was
// checked: the file is not read again.
type approval struct {
	store   trust.Store
	path    string // absolute
	text    string
	state   trust.State
	changes []string // since the last approval; see manifest.Changes
	err     error    // of reading the approvals, of which there is then none
}

// approvalOf looks up the approval of a manifest.
func approvalOf(m *manifest.Manifest, c caller.Caller) *approval {
	out := &approval{store: trust.Of(c), path: c.Abs(m.Path), text: m.Text.Reveal()}
	if out.state, out.err = out.store.Check(out.path, out.text); !out.changed() {
		return out
	}
	if before, err := manifest.Parse(m.Path, []byte(out.state.Text)); err == nil { // else of another version
		out.changes = manifest.Changes(before, m)
	}
	return out
}

func (p *approval) changed() bool { return !p.state.Approved && p.state.SHA256 != "" }

// approve stores the approval.
func (p *approval) approve() error { return p.store.Approve(p.path, p.text) }

// Values of status.
const (
	statusApproved = "approved"
	statusNew      = "new"
	statusChanged  = "changed"
)

// status is the part of a plan's JSON that describes the approval.
func (p *approval) status() approvalStatus {
	out := approvalStatus{Status: statusNew, SHA256: trust.Sum(p.text)}
	if p.state.SHA256 != "" {
		out.Status, out.Approved, out.Changes = statusChanged, &p.state.Time, p.changes
	}
	if p.state.Approved {
		out.Status = statusApproved
	}
	return out
}

type approvalStatus struct {
	Status   string     `json:"status"`
	SHA256   string     `json:"sha256"`             // of the manifest
	Approved *time.Time `json:"approved,omitempty"` // when it, or its last content, was approved
	Changes  []string   `json:"changes,omitempty"`
}

// requireApproval ends a run that nobody watches if its manifest is not approved.
// Otherwise the question before the start covers the manifest.
func (a *app) requireApproval(f runFlags) error {
	if f.approval.state.Approved || f.trust || !f.yes && !f.spec.NoInput && a.inputIsTerminal() {
		a.noteFailure(f.approval.err)
		return nil
	}
	if f.approval.err != nil {
		return f.approval.err
	}
	text := textUntrustedNew
	if f.approval.changed() {
		text = textUntrustedChanged
	}
	return withHint(fmt.Errorf(text, f.approval.path), hintUntrusted, f.approval.path)
}

func (a *app) inputIsTerminal() bool {
	in, ok := a.stdin.(*os.File)
	return ok && term.IsTerminal(int(in.Fd()))
}

// confirmStart asks whether to start. Yes also approves the manifest.
func (a *app) confirmStart(f runFlags) error {
	switch {
	case f.yes:
		return nil
	case f.spec.NoInput:
		return withHint(errors.New(textConfirm), hintConfirm)
	case f.trust || f.approval.state.Approved:
		return a.confirm(textStart)
	}
	if err := a.confirm(textApproveStart); err != nil {
		return err
	}
	a.noteFailure(f.approval.approve())
	return nil
}

// noteFailure reports an approval that could not be read or stored: the user is asked
// again.
func (a *app) noteFailure(err error) {
	if err != nil {
		a.note("WARNING: %v", err)
	}
}

// saved keeps a manifest approved that bottle itself has edited, if it was before.
func (a *app) saved(c caller.Caller, path string, edit manifest.Edit) {
	store, path := trust.Of(c), c.Abs(path)
	state, err := store.Check(path, string(edit.Before))
	if err == nil && state.Approved {
		err = store.Approve(path, string(edit.After))
	}
	a.noteFailure(err)
}
