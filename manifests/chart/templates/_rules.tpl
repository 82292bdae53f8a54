{{/* Permissions, each with its reason. A test compares them with manifests/base. */}}

{{/* What an activator may do in each namespace whose Services it serves. */}}
{{- define "dormouse.activatorRules" -}}
# What to serve, and on which port.
- apiGroups: [dormouse.dev]
  resources: [routes]
  verbs: [list, watch]
# Where the pods are.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
# Wake from zero when no autoscaler has acknowledged within a second.
- apiGroups: [apps]
  resources: [deployments/scale, statefulsets/scale]
  verbs: [get, patch]
{{- end }}

{{/* What has no narrower form. */}}
{{- define "dormouse.activatorClusterRules" -}}
# Is the caller of the report stream an autoscaler?
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
{{- end }}

{{/* What an autoscaler may do in each namespace whose Services it looks after. */}}
{{- define "dormouse.autoscalerRules" -}}
# The configuration of what is rolled out: get what its template names, keep copies of it, share a copy among revisions.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch]
# How each revision's pool stands.
- apiGroups: [dormouse.dev]
  resources: [revisions/status]
  verbs: [patch]
# Patch: the selector key. Create, patch and delete: the private headless Service of each pool.
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
# Why a workload does not get ready. Listed only then.
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
# Patch: the note of the original replicas; of a Deployment also its template, when a rollout gives it back or restarts pods.
# Get: the template, to cut a revision from it. Create and delete: the pool of each revision.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [list, watch, patch]
- apiGroups: [apps]
  resources: [deployments/scale, statefulsets/scale]
  verbs: [patch]
# With an HPA on a workload we do 0 to 1 and leave the rest to it.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list, watch]
# A policy that shuts activators out is warned of.
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list]
# Our slices on captured Services; the built-in ones are only read.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [dormouse.dev]
  resources: [routes]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [dormouse.dev]
  resources: [routes/status]
  verbs: [patch]
# Create and delete: the Rollout that an annotation asks for. Patch: its strategy, and our finalizer on any of them.
- apiGroups: [dormouse.dev]
  resources: [rollouts]
  verbs: [list, watch, create, patch, delete]
# Replaced, so that nothing is done on a status that somebody else has written meanwhile.
- apiGroups: [dormouse.dev]
  resources: [rollouts/status]
  verbs: [update]
# One for each state of a template; old ones are deleted.
- apiGroups: [dormouse.dev]
  resources: [revisions]
  verbs: [list, watch, create, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{/* What it may do in the whole cluster. */}}
{{- define "dormouse.autoscalerClusterRules" -}}
# Annotations on a Namespace are the default for its Services.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [list, watch]
# At the end of an uninstallation: the finalizers of these very objects, after every Service was given back.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [clusterroles, clusterrolebindings]
  resourceNames: [dormouse-autoscaler]
  verbs: [patch]
{{- end }}

{{/* Who leads; the delete and the patches are an uninstallation's last. */}}
{{- define "dormouse.leaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [dormouse-autoscaler]
  verbs: [get, update, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  resourceNames: [dormouse-autoscaler]
  verbs: [patch]
- apiGroups: [""]
  resources: [serviceaccounts]
  resourceNames: [dormouse-autoscaler]
  verbs: [patch]
{{- end }}

