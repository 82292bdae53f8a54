{{/* Labels that select the pods of a process; they never change. */}}
{{- define "dormouse.selector" -}}
app.kubernetes.io/name: dormouse
app.kubernetes.io/component: {{ . }}
{{- end }}

{{/* Labels of every object: (list ROOT COMPONENT); an empty component for what belongs to both. */}}
{{- define "dormouse.labels" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
app.kubernetes.io/name: dormouse
{{- with $component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{- define "dormouse.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Name of what is cluster-wide: with a release for each namespace there may be several. */}}
{{- define "dormouse.clusterName" -}}
{{- $root := index . 0 -}}
dormouse-{{ index . 1 }}{{ if eq $root.Values.scope "namespace" }}-{{ $root.Release.Namespace }}{{ end }}
{{- end }}

{{- define "dormouse.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "dormouse.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What both Deployments' pods have in common: (list ROOT COMPONENT VALUES). */}}
{{- define "dormouse.pod" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index . 2 -}}
serviceAccountName: dormouse-{{ $component }}
terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
securityContext:
  {{- include "dormouse.podSecurity" . | nindent 2 }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "dormouse.selector" $component | nindent 8 }}
{{- end }}

{{- define "dormouse.probes" -}}
readinessProbe:
  httpGet: {path: /ready, port: admin}
  periodSeconds: 2
livenessProbe:
  httpGet: {path: /live, port: admin}
  periodSeconds: 10
  failureThreshold: 6
{{- end }}

{{/* PodDisruptionBudget: (list ROOT COMPONENT). */}}
{{- define "dormouse.budget" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: dormouse-{{ $component }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "dormouse.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "dormouse.selector" $component | nindent 6 }}
{{- end }}
