{{/* Names, labels and image references, each written once. */}}

{{- define "lmtraining.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "lmtraining.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" }}
{{- else if contains (include "lmtraining.name" .) .Release.Name }}
{{- .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "lmtraining.name" .) | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "lmtraining.selectorLabels" -}}
app.kubernetes.io/name: {{ include "lmtraining.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "lmtraining.labels" -}}
{{- $labels := dict
  "app.kubernetes.io/name" (include "lmtraining.name" .)
  "app.kubernetes.io/instance" .Release.Name
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/managed-by" .Release.Service
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_") }}
{{- /* The chart's own win: a selector must never miss its pods because of a common label. */}}
{{- mergeOverwrite (deepCopy .Values.commonLabels) $labels | toYaml }}
{{- end }}

{{/* Annotations of an object, its own over the common ones; nothing where there are none.
     (dict "root" $ "own" <values>) */}}
{{- define "lmtraining.annotations" -}}
{{- with mergeOverwrite (deepCopy (default dict .root.Values.commonAnnotations)) (deepCopy (default dict .own)) }}
{{ printf "annotations:\n%s" (toYaml . | indent 2) | indent 2 }}
{{- end }}
{{- end }}

{{/* The chart's labels over those by which a Prometheus selects an object; the same key twice is no
     YAML. (dict "root" $ "labels" <values>) */}}
{{- define "lmtraining.selectableLabels" -}}
{{- mergeOverwrite (deepCopy .labels) (include "lmtraining.labels" .root | fromYaml) | toYaml }}
{{- end }}

{{/* lmtraining.dev/component: the NetworkPolicy of every job lets this pod in, whatever its name. */}}
{{- define "lmtraining.podLabels" -}}
{{- $labels := include "lmtraining.labels" . | fromYaml }}
{{- set $labels "lmtraining.dev/component" "operator" | toYaml }}
{{- end }}

{{/* Without the labels by which Service, budget and policy select the operator's pods. */}}
{{- define "lmtraining.checkLabels" -}}
{{- $labels := include "lmtraining.labels" . | fromYaml }}
{{- set $labels "app.kubernetes.io/name" (printf "%s-check" (include "lmtraining.name" .)) | toYaml }}
{{- end }}

{{- define "lmtraining.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "lmtraining.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.create is false: name an existing one in serviceAccount.name" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* An image reference: (dict "image" <values> "chart" .Chart) */}}
{{- define "lmtraining.image" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (default .chart.AppVersion .image.tag) }}
{{- end }}
{{- end }}

{{/* All that the operator may do, each with its reason. */}}
{{- define "lmtraining.rules" -}}
# Jobs are read; nothing but their status is written.
- apiGroups: [lmtraining.dev]
  resources: [lmtrainingjobs]
  verbs: [get, list, watch]
- apiGroups: [lmtraining.dev]
  resources: [lmtrainingjobs/status]
  verbs: [patch]
# The gang. patch: the intent is an annotation of the pod.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, delete, patch]
# The job file. delete: spec.keepPodsSeconds after the end.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, delete]
# The checkpoint volume. Never deleted: checkpoints outlive their job.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, create]
# One policy per job: its pods talk to each other and to nobody else. delete: as above.
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, delete]
# list: why a pod cannot be placed is said in its events.
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
# Of use only where Kueue is. get: why the queue of spec.queue holds a job back. delete: a group of
# pods that nobody fills any more leaves its queue.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [get, delete]
{{- end }}
