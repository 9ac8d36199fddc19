module mlplatform.dev/local/upstream/kubernetes-oldest

go 1.20

require (
	k8s.io/kubernetes v1.28.15
	k8s.io/api v0.28.15
	k8s.io/apiextensions-apiserver v0.28.15
	k8s.io/apimachinery v0.28.15
	k8s.io/apiserver v0.28.15
	k8s.io/cli-runtime v0.28.15
	k8s.io/client-go v0.28.15
	k8s.io/cloud-provider v0.28.15
	k8s.io/cluster-bootstrap v0.28.15
	k8s.io/code-generator v0.28.15
	k8s.io/component-base v0.28.15
	k8s.io/component-helpers v0.28.15
	k8s.io/controller-manager v0.28.15
	k8s.io/cri-api v0.28.15
	k8s.io/csi-translation-lib v0.28.15
	k8s.io/dynamic-resource-allocation v0.28.15
	k8s.io/endpointslice v0.28.15
	k8s.io/kms v0.28.15
	k8s.io/kube-aggregator v0.28.15
	k8s.io/kube-controller-manager v0.28.15
	k8s.io/kube-proxy v0.28.15
	k8s.io/kube-scheduler v0.28.15
	k8s.io/kubectl v0.28.15
	k8s.io/kubelet v0.28.15
	k8s.io/legacy-cloud-providers v0.28.15
	k8s.io/metrics v0.28.15
	k8s.io/mount-utils v0.28.15
	k8s.io/pod-security-admission v0.28.15
)
