package kubernetes

// The parts of Kubernetes' API that an export has, with its names and in the order in
// which its documentation has them. The API's own Go types would add megabytes to bottle;
// a test decodes the output into those, strictly.

type object struct {
	APIVersion string            `yaml:"apiVersion"`
	Kind       string            `yaml:"kind"`
	Metadata   metadata          `yaml:"metadata"`
	Automount  *bool             `yaml:"automountServiceAccountToken,omitempty"`
	Data       map[string]string `yaml:"data,omitempty"`
	BinaryData map[string]string `yaml:"binaryData,omitempty"` // in base64
	Spec       any               `yaml:"spec,omitempty"`
}

type metadata struct {
	Name        string            `yaml:"name,omitempty"`
	Namespace   string            `yaml:"namespace,omitempty"`
	Labels      map[string]string `yaml:"labels,omitempty"`
	Annotations map[string]string `yaml:"annotations,omitempty"`
}

type serviceSpec struct {
	Type     string            `yaml:"type"`
	Selector map[string]string `yaml:"selector"`
	Ports    []servicePort     `yaml:"ports"`
}

type servicePort struct {
	Name       string `yaml:"name"`
	Protocol   string `yaml:"protocol"`
	Port       int    `yaml:"port"`
	TargetPort int    `yaml:"targetPort"`
}

type selector struct {
	MatchLabels map[string]string `yaml:"matchLabels,omitempty"`
}

type deploymentSpec struct {
	Replicas int         `yaml:"replicas"`
	Strategy typed       `yaml:"strategy"`
	Selector selector    `yaml:"selector"`
	Template podTemplate `yaml:"template"`
}

type typed struct {
	Type string `yaml:"type"`
}

type podTemplate struct {
	Metadata metadata `yaml:"metadata"`
	Spec     podSpec  `yaml:"spec"`
}

type podSpec struct {
	RuntimeClass   string      `yaml:"runtimeClassName,omitempty"`
	Hostname       string      `yaml:"hostname,omitempty"`
	ServiceAccount string      `yaml:"serviceAccountName"`
	Automount      bool        `yaml:"automountServiceAccountToken"`
	ServiceLinks   bool        `yaml:"enableServiceLinks"`
	RestartPolicy  string      `yaml:"restartPolicy,omitempty"`
	DNSPolicy      string      `yaml:"dnsPolicy,omitempty"`
	DNSConfig      *dnsConfig  `yaml:"dnsConfig,omitempty"`
	Security       podSecurity `yaml:"securityContext"`
	InitContainers []container `yaml:"initContainers,omitempty"`
	Containers     []container `yaml:"containers"`
	Volumes        []volume    `yaml:"volumes,omitempty"`
}

// sandboxSpec is the spec of kubernetes-sigs/agent-sandbox's kind Sandbox.
type sandboxSpec struct {
	Template podTemplate `yaml:"podTemplate"`
}

type dnsConfig struct {
	Nameservers []string    `yaml:"nameservers,omitempty"`
	Options     []dnsOption `yaml:"options,omitempty"`
}

type dnsOption struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

type podSecurity struct {
	RunAsNonRoot bool  `yaml:"runAsNonRoot"`
	RunAsUser    int64 `yaml:"runAsUser"`
	RunAsGroup   int64 `yaml:"runAsGroup"`
	FSGroup      int64 `yaml:"fsGroup,omitempty"`
	Seccomp      typed `yaml:"seccompProfile"`
}

type containerSecurity struct {
	RunAsNonRoot *bool        `yaml:"runAsNonRoot,omitempty"`
	RunAsUser    *int64       `yaml:"runAsUser,omitempty"`
	RunAsGroup   *int64       `yaml:"runAsGroup,omitempty"`
	Escalation   bool         `yaml:"allowPrivilegeEscalation"`
	ReadOnlyRoot bool         `yaml:"readOnlyRootFilesystem,omitempty"`
	Capabilities capabilities `yaml:"capabilities"`
}

type capabilities struct {
	Drop []string `yaml:"drop"`
	Add  []string `yaml:"add,omitempty"`
}

type container struct {
	Name       string            `yaml:"name"`
	Image      string            `yaml:"image"`
	Command    []string          `yaml:"command,omitempty"`
	Args       []string          `yaml:"args,omitempty"`
	WorkingDir string            `yaml:"workingDir,omitempty"`
	Stdin      bool              `yaml:"stdin,omitempty"`
	TTY        bool              `yaml:"tty,omitempty"`
	Env        []envVar          `yaml:"env,omitempty"`
	Ports      []containerPort   `yaml:"ports,omitempty"`
	Resources  resources         `yaml:"resources"`
	Ready      *probe            `yaml:"readinessProbe,omitempty"`
	Security   containerSecurity `yaml:"securityContext"`
	Mounts     []mount           `yaml:"volumeMounts,omitempty"`
}

type envVar struct {
	Name      string     `yaml:"name"`
	Value     *string    `yaml:"value,omitempty"`
	ValueFrom *envSource `yaml:"valueFrom,omitempty"`
}

type envSource struct {
	Field  *fieldRef  `yaml:"fieldRef,omitempty"`
	Secret *secretRef `yaml:"secretKeyRef,omitempty"`
}

type fieldRef struct {
	Path string `yaml:"fieldPath"`
}

type secretRef struct {
	Name string `yaml:"name"`
	Key  string `yaml:"key"`
}

type containerPort struct {
	Name     string `yaml:"name"`
	Port     int    `yaml:"containerPort"`
	Protocol string `yaml:"protocol"`
}

type resources struct {
	Requests map[string]string `yaml:"requests,omitempty"`
	Limits   map[string]string `yaml:"limits"`
}

type probe struct {
	HTTP   httpGet `yaml:"httpGet"`
	Period int     `yaml:"periodSeconds"`
}

type httpGet struct {
	Path string `yaml:"path"`
	Port int    `yaml:"port"`
}

type mount struct {
	Name     string `yaml:"name"`
	Path     string `yaml:"mountPath"`
	SubPath  string `yaml:"subPath,omitempty"`
	ReadOnly bool   `yaml:"readOnly,omitempty"`
}

type volume struct {
	Name      string           `yaml:"name"`
	ConfigMap *configMapVolume `yaml:"configMap,omitempty"`
	Projected *projectedVolume `yaml:"projected,omitempty"`
	EmptyDir  *emptyDir        `yaml:"emptyDir,omitempty"`
}

type projectedVolume struct {
	Sources []projection `yaml:"sources"`
}

type projection struct {
	ConfigMap *objectName `yaml:"configMap,omitempty"`
	Secret    *objectName `yaml:"secret,omitempty"`
}

type objectName struct {
	Name string `yaml:"name"`
}

type configMapVolume struct {
	Name string `yaml:"name"`
}

type emptyDir struct {
	Medium string `yaml:"medium,omitempty"`
	Size   string `yaml:"sizeLimit,omitempty"`
}

type networkPolicySpec struct {
	Pods    selector   `yaml:"podSelector"`
	Types   []string   `yaml:"policyTypes"`
	Ingress []ingress  `yaml:"ingress,omitempty"`
	Egress  []egressTo `yaml:"egress,omitempty"`
}

type ingress struct {
	From  []peer       `yaml:"from"`
	Ports []policyPort `yaml:"ports"`
}

type egressTo struct {
	To    []peer       `yaml:"to"`
	Ports []policyPort `yaml:"ports,omitempty"`
}

type peer struct {
	Namespaces *selector `yaml:"namespaceSelector,omitempty"`
	Pods       *selector `yaml:"podSelector,omitempty"`
	Block      *ipBlock  `yaml:"ipBlock,omitempty"`
}

type ipBlock struct {
	CIDR   string   `yaml:"cidr"`
	Except []string `yaml:"except,omitempty"`
}

type policyPort struct {
	Protocol string `yaml:"protocol"`
	Port     int    `yaml:"port"`
	EndPort  int    `yaml:"endPort,omitempty"`
}
