"""The words of phantom reports: every template and aside. `phantom_report` puts them together."""

from __future__ import annotations

from hybridclip_jax.data.phantom_findings import NO_FINDING

# For each label plain sentences around the label itself, as a prompt has it, and then other wordings of it.
# The plain ones are there so that a bare prompt, "X" or "no X", is something the text tower has read.
Wordings = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
AFFIRM: Wordings = {
    "Cardiomegaly": (
        ("Cardiomegaly.", "There is cardiomegaly.", "Cardiomegaly is present."),
        (
            "The cardiac silhouette is enlarged.",
            "Enlarged cardiac silhouette.",
            "The heart is enlarged.",
            "The heart size is increased.",
            "Enlarged heart, in keeping with cardiomegaly.",
            "The cardiothoracic ratio is increased, consistent with cardiomegaly.",
        ),
    ),
    "Pleural Effusion": (
        (
            "{side} pleural effusion.",
            "There is a {side} pleural effusion.",
            "A {side} pleural effusion is present.",
        ),
        (
            "Pleural effusion on the {side}.",
            "The {side} costophrenic angle is blunted by a pleural effusion.",
            "Moderate {side} pleural effusion.",
            "Fluid layers in the {side} pleural space.",
            "The {side} lower lung is obscured by pleural fluid.",
            "A {side} sided pleural effusion is seen.",
        ),
    ),
    "Consolidation": (
        (
            "Consolidation.",
            "There is consolidation.",
            "Consolidation is present.",
            "{side} {zone} zone consolidation.",
        ),
        (
            "Consolidation in the {side} {zone} zone.",
            "Dense consolidation in the {side} lung.",
            "Patchy airspace opacity in the {side} {zone} zone, consistent with consolidation.",
            "There is an area of consolidation in the {zone} zone of the {side} lung.",
            "Airspace opacity in the {side} {zone} zone.",
            "The {side} {zone} zone is consolidated.",
        ),
    ),
    "Pneumothorax": (
        ("Pneumothorax.", "There is a pneumothorax.", "A pneumothorax is present.", "{side} pneumothorax."),
        (
            "There is a {side} pneumothorax.",
            "Pneumothorax on the {side}.",
            "A {side} pneumothorax is seen with a visible pleural line.",
            "Free air in the {side} pleural space.",
            "A pleural line is visible on the {side}, without lung markings beyond it.",
            "The {side} lung is partly collapsed by a pneumothorax.",
        ),
    ),
    "Nodule": (
        ("Nodule.", "There is a nodule.", "A nodule is present.", "{side} {zone} zone nodule."),
        (
            "Nodule in the {side} {zone} zone.",
            "A round nodule projects over the {side} {zone} zone.",
            "There is a well defined nodule in the {side} lung.",
            "Solitary {side} lung nodule.",
            "A round opacity in the {side} {zone} zone is consistent with a nodule.",
            "A solid round mass in the {side} {zone} zone.",
        ),
    ),
    "Support Device": (
        (
            "Support device.",
            "There is a support device.",
            "A support device is present.",
            "Support device in place.",
        ),
        (
            "{kind} in place.",
            "A support device is seen, with satisfactory position.",
            "The support device is unchanged in position.",
            "There is a {kind}.",
            "The {kind} is in satisfactory position.",
            "Support device: {kind}.",
        ),
    ),
    NO_FINDING: (
        ("No finding.", "No acute finding.", "Normal.", "No acute cardiopulmonary abnormality."),
        (
            "Normal chest radiograph.",
            "No acute abnormality.",
            "Unremarkable chest radiograph.",
            "The chest is normal.",
            "There is no acute finding.",
            "The heart and lungs are normal.",
        ),
    ),
}
DENY: Wordings = {
    "Cardiomegaly": (
        ("No cardiomegaly.", "There is no cardiomegaly.", "No evidence of cardiomegaly."),
        (
            "The heart size is normal.",
            "The cardiac silhouette is normal in size.",
            "The heart is not enlarged.",
            "There is no enlargement of the heart.",
        ),
    ),
    "Pleural Effusion": (
        ("No {side} pleural effusion.", "There is no {side} pleural effusion."),
        (
            "No evidence of a {side} pleural effusion.",
            "No pleural effusion on the {side}.",
            "The {side} costophrenic angle is sharp.",
            "No fluid in the {side} pleural space.",
        ),
    ),
    "Consolidation": (
        ("No consolidation.", "There is no consolidation.", "No evidence of consolidation."),
        (
            "No focal consolidation.",
            "No airspace opacity.",
            "There is no evidence of consolidation in either lung.",
            "Neither lung is consolidated.",
        ),
    ),
    "Pneumothorax": (
        ("No pneumothorax.", "There is no pneumothorax.", "No evidence of pneumothorax."),
        (
            "There is no evidence of pneumothorax.",
            "No free air in the pleural space.",
            "No pneumothorax is seen on either side.",
            "No visible pleural line.",
        ),
    ),
    "Nodule": (
        ("No nodule.", "There is no nodule.", "No evidence of a nodule."),
        (
            "No lung nodule is seen.",
            "There is no nodule in either lung.",
            "No round opacity or nodule.",
            "No suspicious nodule.",
        ),
    ),
    "Support Device": (
        ("No support device.", "There is no support device.", "No support device is seen."),
        ("No lines or tubes.", "No pacemaker or catheter.", "There is no evidence of a support device."),
    ),
    NO_FINDING: (
        (
            "Acute cardiopulmonary abnormality.",
            "There is an acute abnormality.",
            "Abnormal chest radiograph.",
        ),
        ("The chest is not normal.", "This is not a normal chest radiograph."),
    ),
}
# Several labels in one sentence.
BOTH_EFFUSIONS = ("Bilateral pleural effusions.", "There are bilateral pleural effusions.")
NO_EFFUSION = (
    "No pleural effusion.",
    "There is no pleural effusion.",
    "Both costophrenic angles are sharp.",
)
NO_EFFUSION_OR_AIR = (
    "No pleural effusion or pneumothorax.",
    "There is no pneumothorax or pleural effusion.",
)

KINDS = {
    "pacemaker": ("dual lead pacemaker", "pacemaker", "pacemaker with two leads"),
    "port": ("central venous port", "port catheter"),
    "tubes": ("endotracheal tube and central venous catheter", "endotracheal tube"),
}
OPENING = ("Frontal chest radiograph.", "Frontal view of the chest.", "Chest x-ray, frontal view.")
ASIDES = (
    "No comparison is available.",
    "Comparison is made with the prior study.",
    "The study is of satisfactory technical quality.",
    "The film is slightly rotated.",
    "Degenerative changes of the thoracic spine.",
    "Mild degenerative changes are seen in the spine.",
    "Bowel gas is seen below the left diaphragm.",
    "The gastric bubble is in its usual place.",
    "The trachea is in the midline.",
    "The ribs are intact.",
    "The clavicles are intact.",
    "The bones are unremarkable.",
    "The soft tissues are unremarkable.",
    "The mediastinal contour is unremarkable.",
    "The aortic knob is unremarkable.",
    "The right diaphragm is higher than the left, as usual.",
    "Clinical correlation is suggested.",
    "The examination was done with the patient upright.",
)
_SIDES = ("right", "left")
_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth",
    "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth",
)  # fmt: skip
SURVEY = (
    *(f"The {side} {n} rib is intact along its whole course." for n in _ORDINALS for side in _SIDES),
    *(f"The {n} thoracic vertebral body keeps its height and its margins." for n in _ORDINALS),
)
