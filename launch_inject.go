package bottle

import (
	"slices"

	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/proxy"
)

// provisions returns the files and variables for the agent, with placeholders.
func (l *launch) provisions() provision.Agent {
	a := l.plan.Provisions()
	if l.placeholders != nil {
		a.Variables = replaceInjected(a.Variables, func(v provision.Variable) string { return l.placeholders[v.Name] })
	}
	if l.injection == nil {
		return a
	}
	a.Trust = l.injection.Trust()
	a.Variables = l.injection.Placeholders(a.Variables)
	a.Logins = slices.Clone(a.Logins)
	for i, login := range a.Logins {
		a.Logins[i].Secrets = l.injection.Placeholders(login.Secrets)
	}
	return a
}

// startProvisions returns those with which the sandbox is started: for a prepared bottle
// without everything that is given to its user's sessions.
func (l *launch) startProvisions() provision.Agent {
	a := l.provisions()
	if l.ahead {
		a.Variables, a.Prompt, a.SSH = nil, "", nil
	}
	return a
}

// writeSecrets gives the process that inserts them its secrets.
func (l *launch) writeSecrets(state proxy.State) error {
	if l.injection == nil {
		return nil
	}
	data, err := l.injection.Encode()
	if err != nil {
		return err
	}
	return l.e.proxies.StoreSecrets(l.plan.Name, state, data, l.injection.Roots)
}
