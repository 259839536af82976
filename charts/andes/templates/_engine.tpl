{{- /* What an engine's pods are made from, for its Deployment, its LeaderWorkerSet and its cache. */ -}}

{{- /* "true" where an engine is several pods, else empty: list $ "engine" */ -}}
{{- define "andes.grouped" -}}
{{- $engine := index (first .).Values (last .) -}}
{{- if and (eq $engine.kind "sglang") (gt (int $engine.group.size) 1) -}}true{{- end -}}
{{- end -}}

{{- /* Labels of the pods that serve: of several pods of an engine, the first: list $ "engine" */ -}}
{{- define "andes.serving" -}}
{{- include "andes.selector" . -}}
{{- if and (hasPrefix "engine" (last .)) (include "andes.grouped" .) }}
leaderworkerset.sigs.k8s.io/worker-index: "0"
{{- end -}}
{{- end -}}

{{- /* Name of an engine's Service; a LeaderWorkerSet makes one of its own name: list $ "engine" */ -}}
{{- define "andes.engineService" -}}
{{- include "andes.component" . }}{{ if include "andes.grouped" . }}-leaders{{ end }}
{{- end -}}

{{- /* Annotations and number of replicas of an engine, as a mapping: list $ "engine" "apps/v1" "Deployment" */ -}}
{{- define "andes.replicas" -}}
{{- $replicas := (index (first .).Values (index . 1)).replicas -}}
{{- if kindIs "invalid" $replicas -}}
{{- $replicas = include "andes.keptReplicas" . | fromJson | dig "replicas" nil -}}
{{- end -}}
{{- toJson (ternary dict (dict "replicas" $replicas) (kindIs "invalid" $replicas)) -}}
{{- end -}}

{{- /* The live number of engines, where an earlier revision has written it and this one leaves it out: as andes.replicas */ -}}
{{- define "andes.keptReplicas" -}}
{{- $name := include "andes.component" (list (first .) (index . 1)) -}}
{{- $live := lookup (index . 2) (index . 3) (first .).Release.Namespace $name -}}
{{- $written := and $live (hasKey (default dict $live.metadata.annotations) "andes.dev/replicas") -}}
{{- toJson (ternary (dict "replicas" (dig "spec" "replicas" 1 $live | int)) dict (not (empty $written))) -}}
{{- end -}}

{{- /* Template of an engine's pod: list $ "engine" "worker"; without "worker", of the pod that serves */ -}}
{{- define "andes.engineTemplate" -}}
{{- $root := first . -}}
{{- $component := index . 1 -}}
{{- $me := list $root $component -}}
{{- $worker := eq (len .) 3 -}}
{{- with index $root.Values $component -}}
{{- $sim := eq .kind "sim" -}}
{{- $profiles := and $sim $root.Values.profiles -}}
{{- $startEvery := default (ternary 1 10 $sim) .probes.startup.periodSeconds -}}
metadata:
  {{- include "andes.podMetadata" (list $root $component 30000) | nindent 2 }}
    {{- with $profiles }}
    checksum/profiles: {{ toJson . | sha256sum }}
    {{- end }}
spec:
  {{- include "andes.podSpec" $me | nindent 2 }}
  automountServiceAccountToken: false
  {{- with .runtimeClassName }}
  runtimeClassName: {{ . | toYaml }}
  {{- end }}
  {{- if and .tolerations (not $sim) }}
  tolerations:
    {{- toYaml .tolerations | nindent 4 }}
  {{- end }}
  {{- include "andes.spread" $me | nindent 2 }}
  {{- if $worker }}
  terminationGracePeriodSeconds: 30 # the pod that serves has ended before
  {{- else }}
  # preStop, the drain, and time to stop
  terminationGracePeriodSeconds: {{ add .preStopSeconds .drainSeconds 30 }}
  {{- end }}
  {{- with .initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    {{- with .sidecars }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    - name: engine
      image: {{ include "andes.image" (list $root (ternary $root.Values.gateway.image .image $sim)) }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args:
        {{- include "andes.engineArgs" $me | nindent 8 }}
      {{- with include "andes.env" (list (include "andes.engineEnv" (list $root .)) .extraEnv) }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with .envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - {name: http, containerPort: 30000, protocol: TCP}
      # SGLang's /health generates a token; it takes a second at least, and gives up after 20.
      startupProbe:
        {{- $probe := printf "{httpGet: {path: /health, port: http}, periodSeconds: %v, timeoutSeconds: 25, failureThreshold: %v}" $startEvery (ceil (divf .startupSeconds $startEvery)) }}
        {{- include "andes.probe" (list $probe .probes.startup) | nindent 8 }}
      livenessProbe:
        {{- $probe = "{httpGet: {path: /health, port: http}, periodSeconds: 30, timeoutSeconds: 25, failureThreshold: 6}" }}
        {{- include "andes.probe" (list $probe .probes.liveness) | nindent 8 }}
      # By its socket: /health waits for a token, so that a busy engine would be taken away when it is needed most.
      readinessProbe:
        {{- $probe = "{tcpSocket: {port: http}, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 3}" }}
        {{- include "andes.probe" (list $probe .probes.readiness) | nindent 8 }}
      {{- if not $worker }}
      lifecycle:
        preStop:
          exec: {command: [sleep, {{ .preStopSeconds | quote }}]}
      {{- end }}
      resources:
        {{- if $sim }}
        {{- toYaml .simResources | nindent 8 }}
        {{- else }}
        {{- $count := toString .gpu.count }}
        {{- $gpus := dict "limits" (dict .gpu.resource $count) "requests" (dict .gpu.resource $count) }}
        {{- toYaml (merge $gpus .resources) | nindent 8 }}
        {{- end }}
      securityContext:
        {{- toYaml $root.Values.containerSecurityContext | nindent 8 }}
      volumeMounts:
        {{- include "andes.engineMounts" $me | nindent 8 }}
  volumes:
    {{- include "andes.engineVolumes" $me | nindent 4 }}
{{- end -}}
{{- end -}}

{{- /* What an engine is told, as a list: list $ "engine" */ -}}
{{- define "andes.engineArgs" -}}
{{- $root := first . -}}
{{- $grouped := include "andes.grouped" . -}}
{{- with index $root.Values (last .) -}}
{{- $sim := eq .kind "sim" -}}
- serve
{{- if $sim }}
- --engine=sim
- {{ printf "--profile=%s" .profile | toYaml }}
- {{ printf "--model=%s" (default .model.name .model.servedName) | toYaml }}
{{- else }}
- {{ printf "--model=%s" .model.name | toYaml }}
{{- with .model.servedName }}
- {{ printf "--served-model-name=%s" . | toYaml }}
{{- end }}
{{- end }}
{{- if .lora.adapters }}
- --lora-paths
{{- range .lora.adapters }}
- {{ printf "%s=%s" .name .path | toYaml }}
{{- end }}
{{- if and .lora.perBatch (not $sim) }}
- --max-loras-per-batch={{ .lora.perBatch }}
{{- end }}
{{- end }}
- --host=0.0.0.0
- --port=30000
- --enable-metrics
{{- if $grouped }}
- --nnodes={{ .group.size }}
- --node-rank=$(LWS_WORKER_INDEX)
- --dist-init-addr=$(LWS_LEADER_ADDRESS):20000
{{- end }}
- {{ printf "--policy=%s" .policy | toYaml }}
{{- range $name, $value := .policyOptions }}
- {{ printf "--policy-option=%s=%s" $name (kindIs "string" $value | ternary $value (toJson $value)) | toYaml }}
{{- end }}
- --default-ttft={{ .defaultTtft }}
- --default-tds={{ .defaultTds }}
{{- if and .apiKeySecret (not $sim) }}
- --api-key=$(ANDES_ENGINE_API_KEY)
{{- end }}
{{- if and $root.Values.otel.endpoint (not $sim) }}
- --enable-trace
- {{ printf "--otlp-traces-endpoint=%s/v1/traces" (trimSuffix "/" $root.Values.otel.endpoint) | toYaml }}
{{- end }}
{{- with .args }}
{{ toYaml . }}
{{- end }}
{{- end -}}
{{- end -}}

{{- /* Environment of an engine, as a list: list $ its values */ -}}
{{- define "andes.engineEnv" -}}
{{- $root := first . -}}
{{- with last . -}}
{{- $sim := eq .kind "sim" -}}
{{- if and $sim $root.Values.profiles }}
{{- include "andes.profilesVariable" $root | nindent 0 }}
{{- end }}
{{- if not $sim }}
{{- include "andes.modelEnv" . | nindent 0 }}
{{- if .apiKeySecret }}
- name: ANDES_ENGINE_API_KEY
  valueFrom: {secretKeyRef: {name: {{ .apiKeySecret | toYaml }}, key: {{ .apiKeySecretKey | toYaml }}}}
{{- end }}
{{- if $root.Values.otel.endpoint }}
- {name: OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, value: http/protobuf}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{- /* Where models and kernels are kept, and by which right they are downloaded, as a list: values of an engine */ -}}
{{- define "andes.modelEnv" -}}
- {name: HOME, value: /cache}
- {name: HF_HOME, value: /cache/huggingface}
- {name: XDG_CACHE_HOME, value: /cache}
- {name: TORCHINDUCTOR_CACHE_DIR, value: /cache/torchinductor}
- {name: TRITON_CACHE_DIR, value: /cache/triton}
- {name: FLASHINFER_WORKSPACE_BASE, value: /cache}
{{- if .model.huggingFaceSecret }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .model.huggingFaceSecret | toYaml }}, key: {{ .model.huggingFaceSecretKey | toYaml }}}}
{{- end }}
{{- end -}}

{{- /* What an engine mounts, as a list: list $ "engine" */ -}}
{{- define "andes.engineMounts" -}}
{{- $root := first . -}}
{{- with index $root.Values (last .) -}}
{{- $sim := eq .kind "sim" -}}
- {name: tmp, mountPath: /tmp}
{{- if not $sim }}
- {name: cache, mountPath: /cache}
- {name: shm, mountPath: /dev/shm}
{{- end }}
{{- if and $sim $root.Values.profiles }}
{{- include "andes.profilesMount" $root | nindent 0 }}
{{- end }}
{{- if and (not $sim) .model.existingClaim }}
- {name: models, mountPath: {{ .model.mountPath | toJson }}, readOnly: true}
{{- end }}
{{- with .extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}
{{- end -}}

{{- /* Volumes of an engine, as a list: list $ "engine" */ -}}
{{- define "andes.engineVolumes" -}}
{{- $root := first . -}}
{{- $claim := include "andes.cacheClaim" . -}}
{{- with index $root.Values (last .) -}}
{{- $sim := eq .kind "sim" -}}
- name: tmp
  emptyDir: {}
{{- if not $sim }}
- name: cache
  {{- if .cache.node.enabled }}
  hostPath: {path: {{ .cache.node.path | toJson }}, type: Directory} # made by the DaemonSet
  {{- else if $claim }}
  persistentVolumeClaim: {claimName: {{ $claim | toYaml }}}
  {{- else if .cache.sizeLimit }}
  emptyDir: {sizeLimit: {{ .cache.sizeLimit }}}
  {{- else }}
  emptyDir: {}
  {{- end }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .sharedMemory }}}
{{- end }}
{{- if and $sim $root.Values.profiles }}
{{- include "andes.profilesVolume" $root | nindent 0 }}
{{- end }}
{{- if and (not $sim) .model.existingClaim }}
- name: models
  persistentVolumeClaim: {claimName: {{ .model.existingClaim | toYaml }}, readOnly: true}
{{- end }}
{{- with .extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
{{- end -}}

{{- /* Name of the claim for models and kernels, empty where there is none: list $ "engine" */ -}}
{{- define "andes.cacheClaim" -}}
{{- with (index (first .).Values (last .)).cache -}}
{{- .existingClaim | default (ternary (printf "%s-cache" (include "andes.component" $)) "" .claim.enabled) -}}
{{- end -}}
{{- end -}}
