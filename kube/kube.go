// Package kube creates, finds, uses and removes exported agents (package kubernetes) on a
// cluster, by the API's own paths. It has no types of the API's: only the few keys that are
// read. With them it would start slower and be larger by megabytes.
package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
)

// Names and labels of the objects that package kubernetes prints.
const (
	agent     = "agent"
	nameLabel = "app.kubernetes.io/name"
	agents    = nameLabel + "=bottle,app.kubernetes.io/component=agent"
	proxies   = nameLabel + "=bottle,app.kubernetes.io/component=proxy"
	// The container with the agent's work, and the annotation that says where it is.
	workContainer = "work"
	work          = "bottle/work"
)

// ErrExists is returned for the namespace of an agent that exists already.
var ErrExists = errors.New("namespace exists already")

// ErrNotFound is returned for an agent that does not exist.
var ErrNotFound = errors.New("no such agent on the cluster")

// Client is a connection to a cluster.
type Client struct {
	config *rest.Config
	api    *rest.RESTClient
	// Context is the name of the context in the kubeconfig; empty inside a cluster.
	Context string
}

// Connect reads the kubeconfig, KUBECONFIG's or ~/.kube/config, or the settings of the pod
// that this process runs in. The first request opens a connection. A context other than the
// current one has a name.
func Connect(name string) (*Client, error) {
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		clientcmd.NewDefaultClientConfigLoadingRules(), &clientcmd.ConfigOverrides{CurrentContext: name})
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, &hint.Error{Err: fmt.Errorf("find the cluster: %w", err), Hint: "set KUBECONFIG, or choose a context with --context"}
	}
	c := &Client{config: config, Context: name}
	if raw, err := loader.RawConfig(); err == nil && name == "" {
		c.Context = raw.CurrentContext
	}
	config.GroupVersion = &schema.GroupVersion{Version: "v1"}
	config.NegotiatedSerializer = serializer.NewCodecFactory(runtime.NewScheme()).WithoutConversion()
	// The API's advice is for those who write objects, not for those who run agents.
	config.WarningHandler = rest.NoWarnings{}
	// A launch makes some ten requests at once.
	config.QPS, config.Burst = 50, 100
	if c.api, err = rest.UnversionedRESTClientFor(config); err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return c, nil
}

// plurals are the paths of the kinds that an export contains.
var plurals = map[string]string{
	"Namespace": "namespaces", "ServiceAccount": "serviceaccounts", "NetworkPolicy": "networkpolicies", "ConfigMap": "configmaps",
	"Service": "services", "Deployment": "deployments", "Pod": "pods", "Sandbox": "sandboxes", "Secret": "secrets",
}

type object struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct{ Name, Namespace string }
}

func (o object) path() (string, error) {
	plural, ok := plurals[o.Kind]
	if !ok {
		return "", fmt.Errorf("unknown kind %q", o.Kind)
	}
	path := "/apis/" + o.APIVersion
	if !strings.Contains(o.APIVersion, "/") {
		path = "/api/" + o.APIVersion
	}
	if o.Metadata.Namespace != "" {
		path += "/namespaces/" + o.Metadata.Namespace
	}
	return path + "/" + plural, nil
}

// Create creates the objects of an export, whose first one is the namespace, and Secrets with
// these values. If it fails, what it has created is removed. A namespace that exists is
// never touched.
func (c *Client) Create(ctx context.Context, objects []byte, secrets map[string]map[string]secret.Value) error {
	var namespace string
	for i, doc := range documents(objects) {
		var o object
		if err := yaml.Unmarshal(doc, &o); err != nil {
			return fmt.Errorf("parse an object: %w", err)
		}
		err := c.post(ctx, o, "application/yaml", doc)
		switch {
		case err == nil && i == 0:
			namespace = o.Metadata.Name
			for name, values := range secrets {
				err = errors.Join(err, c.createSecret(ctx, namespace, name, values))
			}
		case i == 0 && apierrors.IsAlreadyExists(err):
			return fmt.Errorf("%s: %w", o.Metadata.Name, ErrExists)
		}
		if err != nil {
			if namespace != "" {
				err = errors.Join(err, c.remove(context.WithoutCancel(ctx), namespace))
			}
			return err
		}
	}
	return nil
}

// documents splits a stream of YAML documents after a comment.
func documents(stream []byte) [][]byte {
	return bytes.Split(stream, []byte("\n---\n"))[1:]
}

func (c *Client) post(ctx context.Context, o object, kind string, body []byte) error {
	path, err := o.path()
	if err != nil {
		return err
	}
	err = c.api.Post().AbsPath(path).Param("fieldValidation", "Strict").SetHeader("Content-Type", kind).Body(body).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("create %s %s: %w", o.Kind, o.Metadata.Name, err)
	}
	return nil
}

func (c *Client) createSecret(ctx context.Context, namespace, name string, values map[string]secret.Value) error {
	data := map[string][]byte{}
	for key, v := range values {
		data[key] = []byte(v.Reveal())
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Secret", "data": data,
		"metadata": map[string]any{"name": name, "namespace": namespace, "labels": map[string]string{nameLabel: "bottle"}},
	})
	if err != nil {
		return err
	}
	o := object{APIVersion: "v1", Kind: "Secret"}
	o.Metadata.Name, o.Metadata.Namespace = name, namespace
	return c.post(ctx, o, "application/json", body)
}

// pod has the keys of a pod that are read.
type pod struct {
	Metadata struct {
		Name, Namespace   string
		Labels            map[string]string
		Annotations       map[string]string
		CreationTimestamp time.Time
		DeletionTimestamp *time.Time
	}
	Spec struct {
		NodeName         string
		RuntimeClassName string
		Containers       []struct {
			Name, Image string
			TTY         bool
		}
	}
	Status struct {
		Phase                                    string
		Conditions                               []struct{ Type, Status, Message string }
		InitContainerStatuses, ContainerStatuses []containerStatus
	}
}

type containerStatus struct {
	Name  string
	State struct {
		Waiting    *struct{ Reason, Message string }
		Running    *struct{ StartedAt time.Time }
		Terminated *struct {
			ExitCode int
			Reason   string
		}
	}
}

// Agent is an agent on the cluster. Its name is its namespace.
type Agent struct {
	Name    string    `json:"name"`
	Agent   string    `json:"agent"`
	Image   string    `json:"image"`
	Runtime string    `json:"runtime"`
	Status  string    `json:"status"`
	Node    string    `json:"node,omitempty"`
	Created time.Time `json:"created"`
	// Running: the agent's session runs. Ended: it has, with Code. Failed: it has ended
	// without a code, perhaps before it ran.
	Running bool `json:"running"`
	Ended   bool `json:"ended"`
	Failed  bool `json:"failed"`
	Code    int  `json:"exit_code"`
	// Work is the path of its clone of a repository; empty: it has none.
	Work string `json:"work,omitempty"`

	tty    bool
	broken string // the init container that has failed
}

func (p pod) agent() Agent {
	a := Agent{
		Name: p.Metadata.Namespace, Agent: p.Metadata.Labels["app.kubernetes.io/instance"], Runtime: p.Spec.RuntimeClassName,
		Node: p.Spec.NodeName, Created: p.Metadata.CreationTimestamp, Work: p.Metadata.Annotations[work],
	}
	if len(p.Spec.Containers) > 0 {
		a.Image, a.tty = p.Spec.Containers[0].Image, p.Spec.Containers[0].TTY
	}
	for _, c := range p.Status.ContainerStatuses {
		if c.Name != agent { // of the work, or one that the cluster has added
			continue
		}
		a.Running = c.State.Running != nil
		if t := c.State.Terminated; t != nil {
			a.Ended, a.Code = true, t.ExitCode
		}
	}
	for _, c := range p.Status.InitContainerStatuses {
		if t := c.State.Terminated; t != nil && t.ExitCode != 0 {
			a.broken = c.Name
		}
	}
	switch {
	case p.Metadata.DeletionTimestamp != nil:
		a.Status = "being removed"
	case a.Ended:
		a.Status = fmt.Sprintf("exited (%d)", a.Code)
	case a.Running:
		a.Status = "running"
	case p.Status.Phase == "Failed":
		// Evicted, refused by the node, or an init container has failed.
		a.Status, a.Ended, a.Failed, a.Code = "failed"+p.reason(), true, true, 1
	default:
		a.Status = "starting" + p.reason()
	}
	return a
}

// reason says what a pod that does not run yet waits for.
func (p pod) reason() string {
	for _, c := range p.Status.Conditions {
		if c.Type == "PodScheduled" && c.Status == "False" && c.Message != "" {
			return ", no node: " + c.Message
		}
	}
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		switch w := c.State.Waiting; {
		case c.State.Running != nil:
			return ", " + c.Name
		case c.State.Terminated != nil && c.State.Terminated.ExitCode != 0:
			return fmt.Sprintf(", %s failed (%d)", c.Name, c.State.Terminated.ExitCode)
		case w != nil && w.Reason != "PodInitializing" && w.Reason != "ContainerCreating":
			return ", " + strings.TrimSuffix(c.Name+": "+w.Reason+": "+w.Message, ": ")
		}
	}
	return ""
}

// List returns the agents of all namespaces, by name.
func (c *Client) List(ctx context.Context) ([]Agent, error) {
	var list struct{ Items []pod }
	if err := c.get(ctx, "/api/v1/pods", url.Values{"labelSelector": {agents}}, &list); err != nil {
		return nil, fmt.Errorf("list the agents: %w", err)
	}
	out := make([]Agent, 0, len(list.Items))
	for _, p := range list.Items {
		out = append(out, p.agent())
	}
	slices.SortFunc(out, func(a, b Agent) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (c *Client) get(ctx context.Context, path string, query url.Values, out any) error {
	r := c.api.Get().AbsPath(path)
	for key, values := range query {
		r = r.Param(key, values[0])
	}
	data, err := r.DoRaw(ctx)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, out)
}

// Agent returns the agent with a name, which may lack its prefix.
func (c *Client) Agent(ctx context.Context, name string) (Agent, error) {
	for _, namespace := range []string{name, "bottle-" + name} {
		var p pod
		err := c.get(ctx, "/api/v1/namespaces/"+url.PathEscape(namespace)+"/pods/"+agent, nil, &p)
		switch {
		case apierrors.IsNotFound(err):
			continue
		case err != nil:
			return Agent{}, fmt.Errorf("look for %s: %w", name, err)
		case p.Metadata.Labels[nameLabel] == "bottle":
			return p.agent(), nil
		}
	}
	return Agent{}, &hint.Error{Err: fmt.Errorf("%s: %w", name, ErrNotFound), Hint: "see them with bottle kube list"}
}

// Wait waits until done returns true, and calls it for each change of the agent. The API
// reports changes, so that the number of requests does not depend on the time.
func (c *Client) Wait(ctx context.Context, name string, done func(Agent) bool) (Agent, error) {
	for {
		stream, err := c.api.Get().AbsPath("/api/v1/namespaces/"+name+"/pods").Param("watch", "1").
			Param("fieldSelector", "metadata.name="+agent).Stream(ctx)
		if err != nil {
			return Agent{}, fmt.Errorf("watch %s: %w", name, err)
		}
		a, ok, err := follow(stream, done)
		_ = stream.Close() // read only
		switch {
		case ctx.Err() != nil:
			return a, ctx.Err()
		case err != nil && !errors.Is(err, io.EOF):
			return a, fmt.Errorf("watch %s: %w", name, err)
		case ok:
			return a, nil
		}
		// The API ends a watch after some time. A new one begins with the present state.
	}
}

func follow(stream io.Reader, done func(Agent) bool) (a Agent, ok bool, err error) {
	for d := json.NewDecoder(stream); ; {
		var event struct {
			Type   string
			Object json.RawMessage
		}
		if err := d.Decode(&event); err != nil {
			return a, false, err
		}
		var p pod
		switch event.Type {
		case "DELETED":
			return a, false, ErrNotFound
		case "ADDED", "MODIFIED":
			if err := json.Unmarshal(event.Object, &p); err != nil {
				return a, false, err
			}
			if a = p.agent(); done(a) {
				return a, true, nil
			}
		case "ERROR":
			return a, false, fmt.Errorf("%s", event.Object)
		}
	}
}

// Remove removes an agent with all that it has, after a check that it is bottle's.
func (c *Client) Remove(ctx context.Context, name string) error {
	for _, namespace := range []string{name, "bottle-" + name} {
		var ns struct {
			Metadata struct{ Labels map[string]string }
		}
		err := c.get(ctx, "/api/v1/namespaces/"+url.PathEscape(namespace), nil, &ns)
		switch {
		case apierrors.IsNotFound(err):
			continue
		case err != nil:
			return fmt.Errorf("look for %s: %w", name, err)
		case ns.Metadata.Labels[nameLabel] != "bottle":
			continue
		}
		return c.remove(ctx, namespace)
	}
	return &hint.Error{Err: fmt.Errorf("%s: %w", name, ErrNotFound), Hint: "see them with bottle kube list"}
}

func (c *Client) remove(ctx context.Context, namespace string) error {
	err := c.api.Delete().AbsPath("/api/v1/namespaces/" + namespace).Do(ctx).Error()
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove the namespace %s: %w", namespace, err)
	}
	return nil
}

// Log returns the output of the agent's session.
func (c *Client) Log(ctx context.Context, name string, follow bool) (io.ReadCloser, error) {
	return c.log(ctx, name, agent, agent, follow)
}

// maxReason bounds what is read of the output of a container that has failed, in bytes.
const maxReason = 4 << 10

// Reason returns the last line of what an agent's init container has printed that has
// failed; empty: it is not known.
func (c *Client) Reason(ctx context.Context, a Agent) string {
	if a.broken == "" {
		return ""
	}
	stream, err := c.log(ctx, a.Name, agent, a.broken, false)
	if err != nil {
		return ""
	}
	text, err := io.ReadAll(io.LimitReader(stream, maxReason))
	_ = stream.Close() // read only
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

// EgressLog returns the log of the agent's proxy: of the pod that is the newest.
func (c *Client) EgressLog(ctx context.Context, name string, follow bool) (io.ReadCloser, error) {
	var list struct{ Items []pod }
	if err := c.get(ctx, "/api/v1/namespaces/"+name+"/pods", url.Values{"labelSelector": {proxies}}, &list); err != nil {
		return nil, fmt.Errorf("look for the proxy of %s: %w", name, err)
	}
	if len(list.Items) == 0 {
		return nil, fmt.Errorf("%s has no proxy", name)
	}
	newest := slices.MaxFunc(list.Items, func(a, b pod) int { return a.Metadata.CreationTimestamp.Compare(b.Metadata.CreationTimestamp) })
	return c.log(ctx, name, newest.Metadata.Name, "", follow)
}

func (c *Client) log(ctx context.Context, namespace, pod, container string, follow bool) (io.ReadCloser, error) {
	r := c.api.Get().AbsPath("/api/v1/namespaces/" + namespace + "/pods/" + pod + "/log")
	if follow {
		r = r.Param("follow", "true")
	}
	if container != "" {
		r = r.Param("container", container)
	}
	stream, err := r.Stream(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the log of %s: %w", pod, err)
	}
	return stream, nil
}

// stream returns the address of a connection with a container of the agent's pod.
func (c *Client) stream(namespace, what, container string, query url.Values) *url.URL {
	r := c.api.Verb(http.MethodGet).AbsPath("/api/v1/namespaces/" + namespace + "/pods/" + agent + "/" + what)
	u := r.URL()
	query.Set("container", container)
	u.RawQuery = query.Encode()
	return u
}
