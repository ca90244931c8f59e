{{- define "equipoise.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The name of this install: of its objects, of its SPIFFE identities. A DNS label. */}}
{{- define "equipoise.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains (include "equipoise.name" .) .Release.Name }}
{{- .Release.Name | replace "." "-" | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "equipoise.name" .) | replace "." "-" | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Cluster-scoped objects carry the namespace in their name: releases in other namespaces may have the same. */}}
{{- define "equipoise.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "equipoise.fullname" .) }}
{{- end }}

{{- define "equipoise.selectorLabels" -}}
app.kubernetes.io/name: {{ include "equipoise.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "equipoise.labels" -}}
{{ include "equipoise.selectorLabels" . }}
app.kubernetes.io/part-of: equipoise
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "equipoise.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "equipoise.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "equipoise.image" -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}

{{/* JSON list of the namespaces that are watched; empty when all are. */}}
{{- define "equipoise.watchNamespaces" -}}
{{- if and .Values.clusterWide .Values.watchNamespaces }}
{{- fail "watchNamespaces and clusterWide exclude each other: name the namespaces, or leave them out and say clusterWide." }}
{{- end }}
{{- ternary (list) (.Values.watchNamespaces | default (list .Release.Namespace)) .Values.clusterWide | toJson }}
{{- end }}

{{/* What the operator may do where it watches. */}}
{{- define "equipoise.watchRules" -}}
- apiGroups: [equipoise.dev]
  resources: [tenants, fairnesspolicies]
  verbs: [list, watch]
- apiGroups: [equipoise.dev]
  resources: [tenants/status, fairnesspolicies/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# Read: API keys, by label. Written: each policy's HMAC key. RBAC can restrict neither by label.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch]
# The authority's certificates, for sidecars to mount: by server-side apply.
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [{{ include "equipoise.fullname" . }}-ca]
  verbs: [create, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end }}

{{- define "equipoise.subject" -}}
- kind: ServiceAccount
  name: {{ include "equipoise.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}

{{- define "equipoise.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "equipoise.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}
