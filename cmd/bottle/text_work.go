package main

import (
	"strings"
	"sync"

	"github.com/bot-bottle/bottle/agentwork"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/names"
)

const (
	textWork        = "The work of %s: %s."
	textWorkKept    = "It is kept."
	hintWorkFetch   = "  fetch it:   bottle fetch %[1]s, bottle apply %[1]s, or bottle cp %[1]s:%[2]s DIRECTORY"
	hintWorkApply   = "  fetch it:   bottle apply %[1]s, or bottle cp %[1]s:%[2]s DIRECTORY"
	hintWorkRemove  = "  remove it:  bottle rm %s"
	hintWorkDiscard = "  remove it:  bottle rm --discard %s"
	textEndGit      = "Fetch it, apply it to your files, keep it or discard it? [f/a/K/d] "
	textEndPlain    = "Apply it to your files, keep it or discard it? [a/K/d] "
	textNeedsCwd    = "--%s needs --cwd"
	textNeedsCopy   = "--%s needs --cwd or --cwd-image"
	hintNeedsCwd    = "--cwd gives the agent a copy of the working directory"

	textUnfetched = "%s has work that was not fetched (%s on disk)"
	hintUnfetched = "bottle fetch %[1]s or bottle cp %[1]s:%[2]s DIRECTORY gets it, --discard removes it"

	textKept        = "Work of bottles, which is kept:"
	textKeptRemoved = "Work of bottles, which is removed, too:"
	textKeptHint    = "bottle rm --discard NAME removes one of them, bottle cleanup --discard all of them."

	textCpLong = `Copy a file or a directory between the host and a bottle, as docker cp does.
Of a bottle that does not run, only the workspace can be copied.
Paths in the bottle are relative to its root. A directory is copied with its name into
an existing directory, and to a new name otherwise; of SOURCE/. only the content is
copied.

Files on the host are read and written with the rights of the user who runs bottle,
those in the bottle with the agent's. Of what comes from the bottle, git's directories,
links that lead out, devices and the like are left out.`
	textCpExample = `  sudo bottle cp impl:/workspace/report.pdf .
  sudo bottle cp ./data/. impl:/workspace/data`
	textDiffLong = `Show what an agent has changed in its copy of your directory, committed or not, as a
patch that git apply accepts. The old versions are your files as they are now. New files
that git ignores are left out.`
	textFetchLong = `Bring an agent's commits to the branch bottle/NAME of your repository, and its
uncommitted work as one more commit. Your files and your other branches do not change.
The commits are verified first; none of the agent's settings, hooks or filters is used.
Work in submodules is fetched to branches of the same name there.`
	textFetchExample = `  sudo bottle fetch impl && git diff ...bottle/impl
  sudo bottle fetch impl --branch try-2`
	textApplyLong = `Change your files as an agent has changed its copy of your directory, committed or
not. A file that you have changed as well is a conflict: then nothing is changed. New
files that git ignores are left out. Links that lead out of the directory and names of
git directories are refused.`
	textApplyExample = `  sudo bottle apply impl --dry-run
  sudo bottle apply impl`
	textNothingFetched     = "There is no commit to fetch."
	textNothingApplied     = "Your files have all changes already."
	textFetched            = "%s%s has %s of the agent's."
	textFetchedUncommitted = "%s%s has %s of the agent's, and its uncommitted work as one more."
	textFetchedNone        = "%s%s has no new commits."

	textCpArgs = "expected a path of the host and one of a bottle"
	hintCp     = "bottle cp NAME:PATH DEST, or bottle cp SOURCE NAME:PATH; a path of the host that contains a colon begins with ./"
)

// shortName returns a bottle's name without the prefix of all bottles' names.
func shortName(name string) string { return strings.TrimPrefix(shownName(name), names.Prefix) }

// currentOwner is the owner of the caller's bottles. Under sudo it is read from the list of
// users, which would take a list of bottles longer than everything else.
var currentOwner = sync.OnceValue(func() int { return caller.Current().Owner() })

// shownName returns a bottle's name as the caller writes it: root sees the owners of
// other users' bottles.
func shownName(id string) string {
	if name, ok := names.Visible(id, currentOwner()); ok {
		return name
	}
	return id
}

func summaryOf(k agentwork.Kept) *agentwork.Summary {
	if k.Summary == nil {
		return nil
	}
	return &agentwork.Summary{Commits: k.Summary.Commits, Files: k.Summary.Files}
}

// summaryText describes the work of a bottle.
func summaryText(s *agentwork.Summary, used int64, unfetched bool) string {
	var parts []string
	if s != nil && s.Commits > 0 {
		parts = append(parts, count(s.Commits, "commit"))
	}
	if s != nil {
		parts = append(parts, count(s.Files, "file"))
	}
	parts = append(parts, size(used))
	if unfetched {
		parts = append(parts, "not fetched")
	}
	return strings.Join(parts, ", ")
}

// printKept lists the work of bottles. Without discard it is not removed.
func (a *app) printKept(kept []agentwork.Kept, discard bool) {
	if len(kept) == 0 {
		return
	}
	if discard {
		a.note(textKeptRemoved)
	} else {
		a.note(textKept)
	}
	for _, k := range kept {
		a.note("  %s  %s  from %s", k.Name, summaryText(summaryOf(k), k.Used, k.Unfetched), visible(k.Source))
	}
	if !discard {
		a.note(textKeptHint)
	}
}
