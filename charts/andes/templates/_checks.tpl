{{- /* Guards: what could only crash, or wait for ever, once it is installed, is refused with a sentence. */ -}}

{{- /* Of one engine: list $ "engine-coder" */ -}}
{{- define "andes.checkEngine" -}}
{{- $name := last . -}}
{{- $where := ternary "engine" (printf "models: %s: engine" (trimPrefix "engine-" $name)) (eq $name "engine") -}}
{{- $engine := index (first .).Values $name -}}
{{- $flags := printf " %s " (join " " $engine.args) -}}
{{- include "andes.checkArgs" (list (first .) (printf "%s.args" $where) $engine.args (ternary "sim" "" (eq $engine.kind "sim"))) -}}
{{- include "andes.checkFlags" (list $where $engine $flags) -}}
{{- include "andes.checkOptions" (list (first .) $where $engine $flags) -}}
{{- include "andes.checkAdapters" (list $where $engine $flags) -}}
{{- include "andes.checkPreemption" (list $where $engine $flags) -}}
{{- if eq $engine.kind "sglang" -}}
{{- include "andes.checkGpus" (list $where $engine $flags) -}}
{{- include "andes.checkPolicy" (list $where $engine $flags) -}}
{{- include "andes.checkModel" (list $where $engine) -}}
{{- include "andes.checkCache" (list $where $engine (first .).Values) -}}
{{- include "andes.checkGroup" (list $where $engine (include "andes.component" .)) -}}
{{- include "andes.checkKey" . -}}
{{- else -}}
{{- include "andes.checkProfile" (list (first .) $where $engine) -}}
{{- end -}}
{{- end -}}

{{- /* Arguments as a shell would have made them, and where they are known the flags: list $ "engine.args" its value "sim"; files/known.json
lists what there is */ -}}
{{- define "andes.checkArgs" -}}
{{- $known := index ((first .).Files.Get "files/known.json" | fromJson).flags (last .) -}}
{{- $where := index . 1 -}}
{{- range index . 2 -}}
{{- if regexMatch "^--[^ =]+ " . -}}
{{- fail (printf "%s: %q would be one argument: write --flag=value, or flag and value as two entries" $where .) -}}
{{- end -}}
{{- $flag := regexFind "^--[^ =]+" . -}}
{{- if and $flag $known (not (has $flag $known)) -}}
{{- fail (printf "%s: there is no flag %s here; there are %s" $where $flag (join ", " $known)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Options that the policy does not take; one of another package is not known */ -}}
{{- define "andes.checkOptions" -}}
{{- $engine := index . 2 -}}
{{- if and (eq $engine.policy "stock") (or $engine.policyOptions (contains " --policy-option" (last .))) -}}
{{- fail (printf "%s.policyOptions: policy stock has no options" (index . 1)) -}}
{{- end -}}
{{- $policies := ((first .).Files.Get "files/known.json" | fromJson).policies -}}
{{- $options := index $policies $engine.policy -}}
{{- range $name := ternary (keys $engine.policyOptions | sortAlpha) list (hasKey $policies $engine.policy) -}}
{{- if not (has $name $options) -}}
{{- fail (printf "%s.policyOptions: policy %s has no option %s; it has %s" (index $ 1) $engine.policy $name (join ", " $options)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What a simulated engine plays: list $ "engine" its values */ -}}
{{- define "andes.checkProfile" -}}
{{- $packaged := keys ((first .).Files.Get "files/known.json" | fromJson).profiles | sortAlpha -}}
{{- $names := concat $packaged (keys (first .).Values.profiles) -}}
{{- if not (has (last .).profile $names) -}}
{{- fail (printf "%s.profile: there is no %s; there are %s, and what profiles adds" (index . 1) (last .).profile (join ", " $packaged)) -}}
{{- end -}}
{{- end -}}

{{- /* Value of a flag, empty where it is not there: list " --flag=value --other value " "name|other-name" */ -}}
{{- define "andes.flag" -}}
{{- regexFind (printf " --(%s)[= ]+[^ ]+ " (last .)) (first .) | trim | regexFind "[^ =]*$" -}}
{{- end -}}

{{- /* Flags that the chart sets itself */ -}}
{{- define "andes.checkFlags" -}}
{{- $own := dict "host" "" "port" "" "model|model-path" "model.name" "served-model-name" "model.servedName" "policy" "policy"
  "default-ttft" "defaultTtft" "default-tds" "defaultTds" "api-key" "apiKeySecret" "nnodes" "group.size" "node-rank" "group.size" -}}
{{- if gt (int (index . 1).group.size) 1 -}}
{{- $_ := set $own "dist-init-addr" "group.size" -}}
{{- end -}}
{{- range $names, $value := $own -}}
{{- include "andes.checkOwn" (list (first $) (last $) $names (ternary (printf "%s.%s" (first $) $value) "" (ne $value ""))) -}}
{{- end -}}
{{- end -}}

{{- /* A flag that the chart sets itself: list "engine" " --flag=value --other value " "name|other-name" "engine.model.name" */ -}}
{{- define "andes.checkOwn" -}}
{{- with regexFind (printf " --(%s)[= ]" (index . 2)) (index . 1) -}}
{{- fail (printf "%s.args: the chart sets %s itself%s" (first $) (trimAll " =" .) (ternary (printf "; see %s" (last $)) "" (ne (last $) ""))) -}}
{{- end -}}
{{- end -}}

{{- /* Flags of the operator that its probes and rights depend on: . */ -}}
{{- define "andes.checkOperator" -}}
{{- include "andes.checkArgs" (list . "operator.args" .Values.operator.args "operator") -}}
{{- $flags := printf " %s " (join " " .Values.operator.args) -}}
{{- range $names, $value := dict "port" "" "namespace" "operator.namespaces" "otlp-endpoint" "otel.endpoint" -}}
{{- include "andes.checkOwn" (list "operator" $flags $names $value) -}}
{{- end -}}
{{- end -}}

{{- /* Labels by which Services and controllers know their pods, and others of the chart's: list "commonLabels" the labels
(list "version") */ -}}
{{- define "andes.checkLabels" -}}
{{- range $name := concat (list "name" "instance" "component") (last .) -}}
{{- if hasKey (index $ 1) (printf "app.kubernetes.io/%s" $name) -}}
{{- fail (printf "%s: the chart sets app.kubernetes.io/%s itself: choose another label" (first $) $name) -}}
{{- end -}}
{{- end -}}
{{- if hasKey (index . 1) "helm.sh/chart" -}}
{{- fail (printf "%s: the chart sets helm.sh/chart itself: choose another label" (first .)) -}}
{{- end -}}
{{- end -}}

{{- /* An adapter of one model that has the name of another: the gateway could not tell them apart: list $ (list "engine-coder") */ -}}
{{- define "andes.checkServed" -}}
{{- $values := (first .).Values -}}
{{- range $component := last . -}}
{{- range (index $values $component).lora.adapters -}}
{{- $adapter := .name -}}
{{- range $other := without (last $) $component -}}
{{- $model := (index $values $other).model -}}
{{- if eq $adapter (default $model.name $model.servedName) -}}
{{- fail (printf "models: %s: engine.lora.adapters: %s is the name of the model of %s: requests for it could mean either" (trimPrefix "engine-" $component) $adapter (trimPrefix "engine-" $other)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Adapters are told apart by their names, beside the model's */ -}}
{{- define "andes.checkAdapters" -}}
{{- $engine := index . 1 -}}
{{- $names := list $engine.model.name $engine.model.servedName -}}
{{- range $engine.lora.adapters -}}
{{- if has .name $names -}}
{{- fail (printf "%s.lora.adapters: the name %s is there twice, or is the model's" (first $) .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- if and $engine.lora.adapters (contains " --lora-paths" (last .)) -}}
{{- fail (printf "%s.args: --lora-paths would replace %s.lora.adapters: name all adapters there" (first .) (first .)) -}}
{{- end -}}
{{- end -}}

{{- /* As many GPUs as the flags use; what a --config file asks for is not known */ -}}
{{- define "andes.checkGpus" -}}
{{- $flags := last . -}}
{{- $engine := index . 1 -}}
{{- $used := 1 -}}
{{- $sizes := list "tp|tp-size|tensor-parallel-size" "pp-size|pipeline-parallel-size" "dp|dp-size|data-parallel-size" -}}
{{- if contains " --enable-dp-attention " $flags -}}{{- $sizes = initial $sizes -}}{{- end -}}
{{- range $sizes -}}
{{- $used = mul $used (default "1" (include "andes.flag" (list $flags .)) | int) -}}
{{- end -}}
{{- $has := mul $engine.gpu.count $engine.group.size -}}
{{- if and (ne (int $used) (int $has)) (not (regexMatch " --config[= ]" $flags)) -}}
{{- $pods := ternary "" (printf " on each of %d pods" (int $engine.group.size)) (eq (int $engine.group.size) 1) -}}
{{- fail (printf "%s.gpu.count is %d%s, but its args use %d (--tp, --pp-size, --dp-size): make them agree" (first .) (int $engine.gpu.count) $pods (int $used)) -}}
{{- end -}}
{{- end -}}

{{- /* What the plugin refuses at start */ -}}
{{- define "andes.checkPolicy" -}}
{{- $flags := last . -}}
{{- $engine := index . 1 -}}
{{- $mode := include "andes.flag" (list $flags "preemption-mode") -}}
{{- if not (has $mode (list "" "release" "offload")) -}}
{{- fail (printf "%s.args: --preemption-mode %s: it is release or offload" (first .) $mode) -}}
{{- end -}}
{{- if contains " --host-kv-codec" $flags -}}
{{- fail (printf "%s.args: --host-kv-codec: only the simulator has it" (first .)) -}}
{{- end -}}
{{- $part := regexFind " --(host-kv-gib|offload-without)[= ]" $flags | trimAll " =" -}}
{{- if and $part (ne $mode "offload") -}}
{{- fail (printf "%s.args: %s goes with --preemption-mode=offload" (first .) $part) -}}
{{- end -}}
{{- if ne $engine.policy "stock" -}}
{{- $usual := dict "pp-size|pipeline-parallel-size" "1" "attn-cp-size|attention-context-parallel-size" "1" "dcp-size|decode-context-parallel-size" "1"
  "disaggregation-mode" "null" "decoupled-spec-role" "null" "dllm-algorithm" "" "schedule-policy" "fcfs" "retraction-policy" "length" "min-free-slots-delay" "0" -}}
{{- $refused := regexFind " --(enable-(dp-attention|pdmux|hisparse|prefill-delayer)|encoder-only|use-ray|(smg-)?grpc-mode) " $flags | trim -}}
{{- range $names, $default := $usual -}}
{{- if not (has (include "andes.flag" (list $flags $names)) (list "" $default)) -}}
{{- $refused = printf "--%s" (splitList "|" $names | first) -}}
{{- end -}}
{{- end -}}
{{- if $refused -}}
{{- fail (printf "%s.args: %s does not go with a policy: leave it out, or set %s.policy to stock" (first .) $refused (first .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What a simulated engine refuses too */ -}}
{{- define "andes.checkPreemption" -}}
{{- if and (eq (index . 1).policy "stock") (eq (include "andes.flag" (list (last .) "preemption-mode")) "offload") -}}
{{- fail (printf "%s.args: --preemption-mode offload: policy stock preempts no request; choose another %s.policy" (first .) (first .)) -}}
{{- end -}}
{{- end -}}

{{- /* A model in a claim is a folder there; any other name would be downloaded, past the claim */ -}}
{{- define "andes.checkModel" -}}
{{- $model := (last .).model -}}
{{- if and $model.existingClaim (not (hasPrefix (printf "%s/" (trimSuffix "/" $model.mountPath)) (printf "%s/" $model.name))) -}}
{{- fail (printf "%s.model.name is %s, which would be downloaded: with model.existingClaim it is a folder below %s" (first .) $model.name $model.mountPath) -}}
{{- end -}}
{{- end -}}

{{- /* One place for models */ -}}
{{- define "andes.checkCache" -}}
{{- $cache := (index . 1).cache -}}
{{- $context := (last .).podSecurityContext -}}
{{- if $cache.node.enabled -}}
{{- if or $cache.existingClaim $cache.claim.enabled -}}
{{- fail (printf "%s.cache: node.enabled and a claim: models are kept in one of the two" (first .)) -}}
{{- end -}}
{{- if or (last .).openshift.enabled (not $context.runAsUser) (not $context.runAsGroup) -}}
{{- fail (printf "%s.cache.node.enabled: the folder belongs to podSecurityContext.runAsUser and runAsGroup, which must be set (and openshift.enabled not)" (first .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Several pods an engine */ -}}
{{- define "andes.checkGroup" -}}
{{- $engine := index . 1 -}}
{{- if gt (int $engine.group.size) 1 -}}
{{- if ne $engine.strategy.type "RollingUpdate" -}}
{{- fail (printf "%s.strategy.type is %s, but engines of several pods know RollingUpdate only" (first .) $engine.strategy.type) -}}
{{- end -}}
{{- if and $engine.cache.claim.enabled (not $engine.cache.existingClaim) (eq $engine.cache.claim.accessMode "ReadWriteOnce") -}}
{{- fail (printf "%s.cache.claim.accessMode is ReadWriteOnce, which one node mounts, but engines of several pods are on several: take ReadWriteMany, or cache.node" (first .)) -}}
{{- end -}}
{{- if gt (len (last .)) 46 -}}
{{- fail (printf "%s.group.size: pods of the name %s would have names that are too long: set a shorter fullnameOverride" (first .) (last .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The key that the gateway sends: list $ "engine-coder" */ -}}
{{- define "andes.checkKey" -}}
{{- $values := (first .).Values -}}
{{- $own := index $values (last .) -}}
{{- $differs := or (ne $own.apiKeySecret $values.engine.apiKeySecret) (ne $own.apiKeySecretKey $values.engine.apiKeySecretKey) -}}
{{- if and $values.gateway.enabled $own.apiKeySecret $differs -}}
{{- fail (printf "models: %s: engine.apiKeySecret is %s, key %s, but the gateway sends one key to all engines: name it in engine.apiKeySecret" (trimPrefix "engine-" (last .)) $own.apiKeySecret $own.apiKeySecretKey) -}}
{{- end -}}
{{- end -}}

{{- /* Profiles of one's own; the rest of them is the simulator's to read: . */ -}}
{{- define "andes.checkProfiles" -}}
{{- range $name, $text := .Values.profiles -}}
{{- if not (regexMatch "(?m)^ *\\[engine\\]" $text) -}}
{{- fail (printf "profiles.%s is no profile, it has no [engine]: give the text that andes profile writes, by --set-file" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Bounds of the gateway's autoscaler: . */ -}}
{{- define "andes.checkAutoscaling" -}}
{{- with .Values.gateway.autoscaling -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "gateway.autoscaling.minReplicas is %d, and maxReplicas %d" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- range prepend .Values.gateway.sidecars (dict "name" "gateway" "resources" .Values.gateway.resources) -}}
{{- $resources := default dict .resources -}}
{{- if not (or (default dict $resources.requests).cpu (default dict $resources.limits).cpu) -}}
{{- fail (printf "gateway.autoscaling.enabled: the container %s has no resources.requests.cpu, so its use in per cent is not known and nothing would be scaled" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
